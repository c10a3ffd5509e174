"""Statistics of measurements: latency summaries, paired comparison, racing, proportions."""
