"""What a step of one token is computed with: rows of weights, norms, rotations, attention.  See `one_token`."""
