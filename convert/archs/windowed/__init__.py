"""Families with windows in some layers, which differ from the others in heads or in how they turn."""
