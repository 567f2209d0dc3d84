"""What kernels are written with: explicit vectors inside numba, their memory, and working arrays on the stack."""
