"""Rounding to a block type's exact grid so that a quadratic loss is small, not each weight's error."""
