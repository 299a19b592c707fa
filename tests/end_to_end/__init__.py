"""tests of end_to_end."""
