"""From a checkpoint to a traced program, to an ONNX graph, with the references that judge it."""
