"""Sessions of ONNX Runtime: the provider table, opening, proof of placement, feeding samples."""
