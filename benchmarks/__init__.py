"""Scripts that measured something. Run from the repository's root: python -m benchmarks.cuda."""
