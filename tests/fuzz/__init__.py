"""Whatever bytes come: no crash, no hang, and nothing is believed but what we have signed."""
