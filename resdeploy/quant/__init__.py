"""Lower precision: calibration, ranges, GPTQ, SmoothQuant, float16, gates."""
