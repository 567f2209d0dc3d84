"""Gemma and its successors."""
