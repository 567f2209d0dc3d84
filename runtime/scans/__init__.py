"""Scans: what stands in the place of attention and has a state; pure torch, many tokens at once."""
