"""Identities in the frameworks that people use: one small adapter each, imported by its name.

Each keeps what `listen` and `dial` keep: TLS 1.3 with hybrid key exchange, both ends judged inside
the handshake, the newest SVID at each of them, connections that end with either identity, and the
ID of the peer where the application looks for such things.
"""
