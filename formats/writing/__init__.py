"""Tensors into files: encoded, copied, streamed to one target or several."""
