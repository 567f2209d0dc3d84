"""Dialects: whose names a checkpoint's tensors and keys bear, and the ways between them."""
