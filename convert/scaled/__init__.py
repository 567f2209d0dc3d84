"""Scaled formats: weights stored as integers or small floats with scales beside them, read and written."""
