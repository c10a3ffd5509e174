"""Where models run: onnxruntime and numpy, nothing heavier."""
