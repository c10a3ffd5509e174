"""Training: augmentation, the loop, checkpoints and state on disk."""
