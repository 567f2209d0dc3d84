"""Tensors taken apart, joined and reordered by rows, lazily."""
