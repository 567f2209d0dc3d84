"""Mixtures of experts of their own make."""
