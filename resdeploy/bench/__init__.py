"""Benchmarks: sessions timed in fresh processes, in turn, profiled, under load."""
