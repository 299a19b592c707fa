"""What the trainings of teachers and students share: devices, an optimiser, curves and files that appear whole."""
