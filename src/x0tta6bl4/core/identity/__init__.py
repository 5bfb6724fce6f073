"""Whom to believe, and when to renew: the SPIFFE rules over parsed fields."""
