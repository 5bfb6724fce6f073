"""x0tta6bl4: a self-healing zero-trust mesh.

Programs talk through it unchanged; every connection has two SPIFFE identities, and a session
outlives the relays, circuits and certificates that carry it. ARCHITECTURE.md has the floor plan.
"""

__version__ = "0.1.0"
