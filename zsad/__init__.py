"""zsad."""
