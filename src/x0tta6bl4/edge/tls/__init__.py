"""TLS 1.3 and X.509: certificates, the one judge of them, and connections that ask it."""
