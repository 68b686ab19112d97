"""The fixture `s3` is made known to all tests by tests/conftest.py."""
