"""The command line `x0`."""
