"""A bundle at work: session, kernels, what it is fed and what it answers."""
