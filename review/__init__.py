"""What a person does with a release: look at it, question it, decide, sign."""
