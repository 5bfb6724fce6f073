"""Attacks on the TLS of the mesh: every one has to be refused, and for its own reason."""
