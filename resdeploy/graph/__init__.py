"""ONNX in, ONNX out: one pass per file, ordered in `pipeline`. No torch, no runtime."""
