"""One matrix as tensor train + residual, and how many bytes each gets."""
