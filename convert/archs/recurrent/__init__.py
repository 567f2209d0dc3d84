"""Families whose layers, all or most, have a state that goes from token to token."""
