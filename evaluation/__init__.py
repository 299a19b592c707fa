"""Evaluation: masks and videos in, numbers out; knows no model."""
