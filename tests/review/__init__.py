"""tests of review."""
