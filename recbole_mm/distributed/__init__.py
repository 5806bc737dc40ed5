"""Training on several workers: each takes its part of every batch, and their gradients are those of the whole batch."""
