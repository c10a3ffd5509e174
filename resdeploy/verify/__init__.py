"""The evidence of a verdict: wiring, weights, layers, outputs, conformance, planted faults."""
