"""Tests mirror the house file by file."""
