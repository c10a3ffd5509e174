"""Drop initializers that nothing reads.

Before:  weights of operators that are gone, at which ONNX Runtime warns whenever a file is opened
After:   weights that are read by a node, here or in an inner graph, or are an output

One that is also an input of the graph stays: it is part of the model's signature.
"""

from collections.abc import Iterator

import onnx

__all__ = ["drop_unused"]


def drop_unused(model: onnx.ModelProto) -> int:
    """Drop unused initializers in place, and return how many there were."""
    read = {*_read(model.graph), *(value.name for value in model.graph.input)}
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in read]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    return len(unused)


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _read(inner)
