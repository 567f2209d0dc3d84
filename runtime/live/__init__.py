"""Models in memory: transformers' to checkpoints, without a folder between, and back."""
