"""Quantizing: a model of any kind to quantized files: plans, mixes, repackings, and what each writes (`to_*`)."""
