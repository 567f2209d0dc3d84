"""One token at a time through a decoder of common pieces, as one call of compiled code."""
