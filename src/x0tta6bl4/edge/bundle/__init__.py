"""SPIFFE bundles: what a trust domain publishes about its keys."""
