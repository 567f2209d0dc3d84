"""Later dense families: a gated MLP, norms of queries and keys, norms behind the sublayers."""
