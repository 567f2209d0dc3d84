"""GPT's line: LayerNorm, mostly fused or biased projections."""
