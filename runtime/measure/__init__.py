"""Measures of a model over a text: perplexity, two models compared, a sweep over types."""
