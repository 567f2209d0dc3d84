"""Dialects: how each architecture names, shapes and permutes its tensors in each ecosystem."""
