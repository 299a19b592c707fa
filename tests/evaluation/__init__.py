"""tests of evaluation."""
