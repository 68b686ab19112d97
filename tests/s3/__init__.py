"""A real S3-compatible server on loopback for the tests, and the tests that it is one."""
