"""Tests of the endpoint through its real proxy."""
