"""Single assignment of ONNX: each name stands for one value, which is there before it is read.

Readers of a file that breaks this choose differently, each without a word: of two initializers of
one name, ONNX Runtime takes the first and the reference evaluator the last. So it is no model.

Refuses, in the graph, in those inside it and in local functions,

1. a name given to two values, of which one may belong to a graph around; an initializer may be the
   default of an input of its graph;
2. a node that reads a name which no value before it has, or an output that none has;
3. an attribute that a node has twice, an opset imported twice, a function defined twice.
"""

from collections import Counter
from collections.abc import Collection, Iterable

import onnx

__all__ = ["why_ambiguous"]


def why_ambiguous(model: onnx.ModelProto) -> str | None:
    """Return the first breach of single assignment in words, None if there is none."""
    try:
        _check_once("opset", _domains(model.opset_import))
        _check_graph(model.graph, frozenset())
        _check_once("function", ((f.domain, f.name, f.overload) for f in model.functions))
        for function in model.functions:
            _check_once("opset", _domains(function.opset_import))
            _check_once("input", function.input)
            _check_body(function.node, function.output, set(function.input), frozenset())
    except _AmbiguousError as error:
        return str(error)
    return None


class _AmbiguousError(Exception):
    """A breach, in words."""


def _domains(imports: Iterable[onnx.OperatorSetIdProto]) -> Iterable[str]:
    return ("ai.onnx" if one.domain in ("", "ai.onnx") else one.domain for one in imports)


def _check_once(what: str, names: Iterable[object]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise _AmbiguousError(f"{count} of its {what}s are called {name!r}")


def _check_graph(graph: onnx.GraphProto, around: Collection[str]) -> None:
    """Check a graph inside one in which the names `around` have values already."""
    initializers = [tensor.name for tensor in graph.initializer]
    initializers += [sparse.values.name for sparse in graph.sparse_initializer]
    inputs = [value.name for value in graph.input]
    _check_once("initializer", initializers)
    _check_once("input", inputs)
    names = {*initializers, *inputs}
    for name in sorted(names.intersection(around)):
        raise _AmbiguousError(f"the name {name!r} is given to two values, one in an inner graph")
    _check_body(graph.node, [value.name for value in graph.output], names, around)


def _check_body(
    nodes: Iterable[onnx.NodeProto],
    outputs: Iterable[str],
    known: set[str],
    around: Collection[str],
) -> None:
    known = known | set(around)
    for node in nodes:
        _check_once("attribute", (attribute.name for attribute in node.attribute))
        for name in node.input:
            if name and name not in known:
                raise _AmbiguousError(f"a {node.op_type} reads {name!r}, which is not there yet")
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for graph in (*inner, *attribute.graphs):
                _check_graph(graph, known)
        for name in filter(None, node.output):
            if name in known:
                raise _AmbiguousError(f"the name {name!r} is given to two values")
            known.add(name)
    for name in outputs:
        if name not in known:
            raise _AmbiguousError(f"no value is called {name!r}, which is an output")
