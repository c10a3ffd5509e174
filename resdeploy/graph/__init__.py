"""ONNX graphs: reading of layers, editing, float64 evaluation, passes."""
