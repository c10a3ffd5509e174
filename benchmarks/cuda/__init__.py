"""Proofs and timings of the networks on a GPU, against every other runtime for them there."""
