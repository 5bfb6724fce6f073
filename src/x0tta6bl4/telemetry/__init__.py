"""What is told about a running mesh: metrics, logs and the access log."""
