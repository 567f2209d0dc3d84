"""What kernels and those who call them agree on; needs no numba."""
