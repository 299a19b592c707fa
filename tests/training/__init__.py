"""tests of training."""
