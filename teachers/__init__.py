"""Teachers: high-capacity models that make the pseudo ground truth."""
