"""Signed records: what nodes and the authority say, held by everybody, verified by everybody."""
