"""tests of pipeline."""
