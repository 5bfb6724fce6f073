"""Where to go: a checked map of the mesh, shortest paths and disjoint backups over it."""
