"""Llama's line: RMSNorm, gated MLP, rotary positions."""
