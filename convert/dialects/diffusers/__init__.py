"""diffusers' names of image models."""
