"""What programs import: identities of workloads, and a plug-in for tests."""
