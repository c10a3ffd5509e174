"""Where models are made: the only folder that imports torch."""
