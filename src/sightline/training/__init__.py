"""Training: the only loop, its optimiser, checkpoints, processes and progress."""
