"""tests of teachers."""
