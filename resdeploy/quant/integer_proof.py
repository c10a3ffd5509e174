"""Proof that a quantised model runs in integers, from the runtime's own graph of it.

QuantizeLinear and DequantizeLinear around a layer are a wish. Where the runtime finds no kernel for
the types at hand, it computes in float32 between them, as slowly as before and without a word: on
x86, int8 activations leave every second convolution of a ResNet and all of its residual additions
that way.
"""

from collections import Counter
from collections.abc import Collection

import onnx

from resdeploy.quant.runtime import optimized_graph, runtime_name
from resdeploy.schema.quants import IntegerProof, IntegerTypes

__all__ = ["prove_integer"]

_FLOAT_LAYERS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "ConvTranspose"})


def prove_integer(
    quantized: onnx.ModelProto, *, types: IntegerTypes, kept_float: Collection[str] = ()
) -> IntegerProof:
    """Return the operators of the runtime's graph, and the layers left in float.

    Args:
        quantized: the model.
        types: of its activations; signed ones are fused here as ARM's runtime fuses them.
        kept_float: names of layers that were to stay in float.
    """
    graph = optimized_graph(quantized, signed=types != "u8s8")
    constants = {tensor.name for tensor in graph.initializer}
    left = tuple(
        f"{node.name or node.output[0]} ({node.op_type})"
        for node in graph.node
        if _computes_in_float(node, constants) and not _is_kept(node, kept_float)
    )
    operators = Counter(node.op_type for node in graph.node)
    return IntegerProof(
        runtime=runtime_name(),
        operators=dict(sorted(operators.items())),
        left_in_float=left,
    )


def _computes_in_float(node: onnx.NodeProto, constants: Collection[str]) -> bool:
    if node.op_type in _FLOAT_LAYERS:
        return True
    # A sum with a constant is no residual addition.
    return node.op_type == "Add" and not any(name in constants for name in node.input)


def _is_kept(node: onnx.NodeProto, kept_float: Collection[str]) -> bool:
    # A fused node has the name of the layer it began with, or one that contains it.
    return any(name in node.name for name in kept_float)
