"""tests of students."""
