"""Prove and time the networks on a GPU, beside everything else that can run them there."""
