"""The skeleton of an ONNX model: its function in one normal form.

1. Constants are known; every BatchNormalization that folds is folded, in float64.
2. Identity, Dropout, Cast between floats and reshapes are stepped over.
3. Conv, ConvTranspose, and each Gemm or MatMul with constant weights (with the Add of a constant
   after it) are affine layers; a BatchNormalization that stays is one too, by scale and shift, and
   a Sub of one constant per channel, by its shift.
4. A mean over all positions of an image is GlobalAveragePool, however it was written. A 1x1
   convolution that only picks pixels and puts channels among zeros is the Slice and the Pad that it
   stands for.
5. Attributes have the specification's defaults filled in; constants that an operator reads are
   attributes.

Anything else is an operator by its name. Models with branches or loops are not reduced.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from resdeploy.errors import UnsupportedModelError
from resdeploy.fold import algebra
from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.graph.affine_layer import Array, is_affine, read_node, window_attributes
from resdeploy.graph.float64 import to_float64
from resdeploy.graph.onnx_file import fed_inputs, opset_of
from resdeploy.verify.compare_structure import Affine, Skeleton, SkeletonNode

__all__ = ["may_fold", "skeleton_of"]


_TRANSPARENT = frozenset(
    {"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "CastLike"}
)
# Of scale and shift: var + eps, square root, division; mean * scale and the difference.
_ROUNDINGS_OF_BATCHNORM = 5

# A BatchNorm, or the product of a frozen one.
_MAY_FOLD = frozenset({"BatchNormalization", "Mul"})

_IMAGE_RANK = 4

_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_WINDOWS = frozenset({"Conv", "ConvTranspose", *_POOLS})


def skeleton_of(
    model: onnx.ModelProto,
    *,
    fold: bool = True,
    bias_magnitudes: Mapping[str, Array] | None = None,
) -> Skeleton:
    """Return the skeleton of `model`, which is not changed.

    Args:
        model: with its weights in it.
        fold: fold the BatchNormalizations that can be; otherwise they are layers of their own.
        bias_magnitudes: by the name of a layer's weight without its last part, the largest of its
            bias's terms; elsewhere the bias itself.

    Raises:
        UnsupportedModelError: the model has control flow, sparse tensors or local functions.
    """
    _refuse_control_flow(model)
    dtypes = {t.name: _TYPES.get(t.data_type, "float32") for t in model.graph.initializer}
    if fold and may_fold(model):
        model = _folded(model)
    return _Reducer(model, dtypes, bias_magnitudes or {}).skeleton()


def may_fold(model: onnx.ModelProto) -> bool:
    """True if `model` has operators that a fold could take away."""
    return any(node.op_type in _MAY_FOLD for node in model.graph.node)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` in float64 with every BatchNormalization folded that can be."""
    try:
        folded = ir.from_proto(to_float64(model))
    except ir.serde.SerdeError as error:
        raise UnsupportedModelError(
            f"The graph is damaged: {str(error.__cause__ or error).splitlines()[0]}"
        ) from error
    fold_batchnorm(folded)
    return ir.to_proto(folded)


def _refuse_control_flow(model: onnx.ModelProto) -> None:
    inner = [n for n in model.graph.node if any(a.HasField("g") or a.graphs for a in n.attribute)]
    if inner or model.functions or model.graph.sparse_initializer:
        where = inner[0].name or inner[0].op_type if inner else ""
        raise UnsupportedModelError(
            "A model with branches, loops, local functions or sparse weights cannot be compared "
            "node by node.",
            where=where,
        )


_TYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


class _Reducer:
    """Walks a model once and collects its skeleton."""

    def __init__(
        self, model: onnx.ModelProto, dtypes: Mapping[str, str], magnitudes: Mapping[str, Array]
    ) -> None:
        self._graph = model.graph
        self._opset = opset_of(model)
        self._dtypes = dtypes
        self._magnitudes = magnitudes
        self._constants = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self._nodes: list[SkeletonNode] = []
        self._places = {value.name: -k - 1 for k, value in enumerate(fed_inputs(model))}
        self._num_readers = Counter(name for node in model.graph.node for name in node.input)
        self._num_readers.update(value.name for value in model.graph.output)

    def skeleton(self) -> Skeleton:
        """Return the skeleton."""
        for node in self._graph.node:
            self._take(node)
        constant = [v.name for v in self._graph.output if v.name not in self._places]
        if constant:
            raise UnsupportedModelError("An output of the model is a constant.", where=constant[0])
        outputs = tuple(self._places[v.name] for v in self._graph.output)
        return _without_unread(Skeleton(nodes=tuple(self._nodes), outputs=outputs))

    def _take(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            value = onnx.helper.get_node_attr_value(node, node.attribute[0].name)
            is_tensor = node.attribute[0].name == "value"
            array = onnx.numpy_helper.to_array(value) if is_tensor else np.asarray(value)
            self._constants[node.output[0]] = array
            return
        data = [name for name in node.input if name and name not in self._constants]
        if not data and node.op_type == "Identity":
            self._constants[node.output[0]] = self._constants[node.input[0]]
            return
        unknown = [name for name in data if name not in self._places]
        if unknown:
            raise UnsupportedModelError(
                f"The graph is damaged: nothing computes {unknown[0]!r}.", where=node.name
            )
        steps_over = node.op_type in _TRANSPARENT or self._casts_floats(node)
        if steps_over and node.input[0] in self._places:
            # The other inputs of a Reshape move its elements, and do not change them.
            self._places[node.output[0]] = self._places[node.input[0]]
            return
        if self._extend_bias(node) or self._take_padded_shortcut(node):
            return
        affine = self._affine(node)
        sources = node.input[:1] if affine is not None else data
        self._nodes.append(
            SkeletonNode(
                name=node.name or node.output[0],
                op=self._operator(node, affine),
                attributes=self._own_attributes(node, affine),
                sources=tuple(self._places[name] for name in sources),
                affine=affine,
                reads=node.input[0] if affine is not None else "",
                writes=node.output[0] if affine is not None else "",
            )
        )
        for name in node.output:
            self._places[name] = len(self._nodes) - 1

    def _casts_floats(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Cast" and onnx.helper.get_node_attr_value(node, "to") in _TYPES

    # --- affine layers ---

    def _affine(self, node: onnx.NodeProto) -> Affine | None:
        constants = [self._constants.get(name) for name in node.input[1:]]
        if node.input[0] in self._constants or any(
            name and value is None for name, value in zip(node.input[1:], constants, strict=True)
        ):
            return None
        if node.op_type == "BatchNormalization":
            return self._from_batchnorm(node)
        if node.op_type == "Sub" and constants and constants[0] is not None:
            return self._from_difference(node, constants[0])
        if not is_affine(node) or not constants:
            return None
        weight = np.asarray(constants[0], np.float64)
        if node.op_type == "MatMul" and weight.ndim != 2:
            return None
        layer = read_node(node, weight.shape)
        if layer.is_linear:
            weight = layer.by_output(weight * layer.alpha)
        own = constants[1] if len(constants) > 1 else None
        added = np.zeros(1) if own is None else np.asarray(own, np.float64).ravel() * layer.beta
        if layer.reads_columns or added.size not in (1, layer.num_outputs):
            return None  # of columns, or with a bias that differs by row
        bias = np.broadcast_to(added, (layer.num_outputs,))
        magnitude = self._magnitude(node.input[1], bias)
        return self._numbers(node, weight, bias, magnitude, layer.num_products)

    def _numbers(
        self, node: onnx.NodeProto, weight: Array, bias: Array, magnitude: Array, num_products: int
    ) -> Affine:
        return Affine(
            weight=weight,
            bias=bias,
            dtype=self._dtypes.get(node.input[1], "float32"),
            num_products=num_products,
            bias_magnitude=magnitude,
        )

    def _from_batchnorm(self, node: onnx.NodeProto) -> Affine:
        gamma, beta, mean, var = (self._constants[name] for name in node.input[1:5])
        eps = float(np.float32(self._attributes(node).get("epsilon", 1e-5)))
        scale, shift = algebra.scale_and_shift(
            algebra.BatchNormParams(gamma=gamma, beta=beta, mean=mean, var=var, eps=eps)
        )
        magnitude = np.abs(np.asarray(mean) * scale) + np.abs(beta)
        weight, bias, magnitude = (a.astype(np.float64) for a in (scale, shift, magnitude))
        return self._numbers(node, weight, bias, magnitude, _ROUNDINGS_OF_BATCHNORM)

    def _from_difference(self, node: onnx.NodeProto, constant: Array) -> Affine | None:
        """Return a Sub of (1, C, 1, 1) as a layer of scale one: its numbers have an exact value."""
        if constant.ndim != _IMAGE_RANK or constant.size != constant.shape[1]:
            return None
        shift = -np.asarray(constant, np.float64).reshape(-1)
        return self._numbers(node, np.ones_like(shift), shift, np.abs(shift), 1)

    def _magnitude(self, weight_name: str, bias: Array) -> Array:
        known = self._magnitudes.get(weight_name.rpartition(".")[0])
        if known is None or known.shape != bias.shape:
            return np.abs(bias)
        return np.maximum(np.abs(bias), known)

    def _extend_bias(self, node: onnx.NodeProto) -> bool:
        """Take an Add of a constant to a product that nothing else reads: its bias."""
        if node.op_type != "Add":
            return False
        for data, constant in ((0, 1), (1, 0)):
            name = node.input[data]
            place = self._places.get(name, -1)
            added = self._constants.get(node.input[constant])
            if place < 0 or added is None or self._num_readers[name] != 1:
                continue
            before = self._nodes[place]
            if before.op != "Linear" or before.affine is None or before.writes != name:
                continue
            if np.asarray(added).size not in (1, len(before.affine.bias)):
                continue
            bias = before.affine.bias + np.asarray(added, np.float64).reshape(-1)
            magnitude = np.maximum(np.abs(bias), before.affine.bias_magnitude)
            affine = replace(before.affine, bias=bias, bias_magnitude=magnitude)
            self._nodes[place] = replace(before, affine=affine, writes=node.output[0])
            self._places[node.output[0]] = place
            return True
        return False

    # --- movements written as layers ---

    def _take_padded_shortcut(self, node: onnx.NodeProto) -> bool:
        """Take a convolution that only moves elements as its movements; False for any other."""
        weight = self._constants.get(node.input[1]) if is_affine(node, "Conv") else None
        if weight is None or weight.ndim != 4 or node.input[0] not in self._places:
            return False
        bias = self._constants.get(node.input[2]) if len(node.input) > 2 else np.zeros(1)
        layer = read_node(node, weight.shape)
        num_outputs, num_inputs, strides = layer.num_outputs, layer.num_inputs, layer.strides
        before = int(weight[:, 0].argmax()) if layer.kernel == (1, 1) else 0
        if (
            layer.kernel != (1, 1)
            or layer.groups != 1
            or any(layer.pads)
            or bias is None
            or np.any(bias)
            or num_outputs <= num_inputs
            or max(strides) == 1
            or not np.array_equal(weight[:, :, 0, 0], np.eye(num_outputs, num_inputs, k=-before))
        ):
            return False
        name = node.name or node.output[0]
        cuts = tuple((f"axis {k + 2}", f"0:end:{s}") for k, s in enumerate(strides) if s != 1)
        zeros = _zeros_around({1: (before, num_outputs - num_inputs - before)})
        source = self._places[node.input[0]]
        self._nodes.append(SkeletonNode(name=name, op="Slice", attributes=cuts, sources=(source,)))
        source = len(self._nodes) - 1
        self._nodes.append(SkeletonNode(name=name, op="Pad", attributes=zeros, sources=(source,)))
        self._places[node.output[0]] = len(self._nodes) - 1
        return True

    # --- attributes ---

    def _attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        """Return a node's attributes, with those of the specification where it states none."""
        found: dict[str, Any] = {}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, node.domain)
            for name, attribute in schema.attributes.items():
                if attribute.default_value.name:
                    found[name] = onnx.helper.get_attribute_value(attribute.default_value)
        except onnx.defs.SchemaError:
            pass  # an operator of another domain says all there is to know
        for attribute in node.attribute:
            found[attribute.name] = onnx.helper.get_attribute_value(attribute)
        return found

    def _own_attributes(
        self, node: onnx.NodeProto, affine: Affine | None
    ) -> tuple[tuple[str, str], ...]:
        attributes = self._attributes(node)
        if affine is not None and node.op_type not in _WINDOWS:
            return ()  # all in its weights
        if _is_global_average(node, self._axes(node, attributes)):
            return ()
        if node.op_type in _WINDOWS:
            stated = attributes.get("kernel_shape", ())
            kernel = stated if affine is None else affine.weight.shape[2:]
            attributes = window_attributes(attributes, kernel)
        if node.op_type == "Slice" and all(name in self._constants for name in node.input[1:]):
            return _cuts([self._constants[name] for name in node.input[1:]])
        if node.op_type == "Pad" and (zeros := self._zero_padding(node, attributes)) is not None:
            return zeros
        if affine is None:
            for k, name in enumerate(node.input):
                if name in self._constants:
                    value = self._constants[name]
                    attributes[f"input {k}"] = f"{value.dtype.kind}{value.shape} {value.tolist()}"
        return tuple(sorted((key, _text(value)) for key, value in attributes.items()))

    def _zero_padding(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any]
    ) -> tuple[tuple[str, str], ...] | None:
        """Return the zeros that a Pad adds, by axis; None if it does anything else."""
        constants = [self._constants.get(name) for name in node.input[1:]]
        value = constants[1] if len(node.input) > 2 and node.input[2] else np.zeros(1)
        pads = constants[0] if constants else None
        is_constant = attributes.get("mode", b"constant") in (b"constant", "constant")
        if not is_constant or pads is None or value is None or np.any(value):
            return None
        befores, afters = pads.reshape(2, -1).tolist()
        axes = constants[2] if len(node.input) > 3 else np.arange(len(befores))
        if axes is None or np.any(axes < 0):
            return None
        return _zeros_around(
            {int(k): (b, a) for k, b, a in zip(axes, befores, afters, strict=True)}
        )

    def _operator(self, node: onnx.NodeProto, affine: Affine | None) -> str:
        if affine is not None and node.op_type in ("Gemm", "MatMul"):
            return "Linear"
        if _is_global_average(node, self._axes(node, self._attributes(node))):
            return "GlobalAveragePool"
        return node.op_type if not node.domain else f"{node.domain}.{node.op_type}"

    def _axes(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> tuple[int, ...]:
        if node.op_type != "ReduceMean":
            return ()
        if len(node.input) > 1 and node.input[1] in self._constants:
            return tuple(int(axis) for axis in self._constants[node.input[1]].ravel())
        return tuple(attributes.get("axes", ()))


def _is_global_average(node: onnx.NodeProto, axes: tuple[int, ...]) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    return node.op_type == "ReduceMean" and set(axes) in ({2, 3}, {-1, -2}, {2, -1}, {-2, 3})


def _cuts(constants: list[Array]) -> tuple[tuple[str, str], ...]:
    """Return the cuts of a Slice by axis, without whole axes, which some exporters state."""
    starts, ends, *more = (constant.ravel().tolist() for constant in constants)
    axes = more[0] if more else list(range(len(starts)))
    steps = more[1] if len(more) > 1 else [1] * len(starts)
    found = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        last = "end" if end >= np.iinfo(np.int32).max else str(end)
        if (start, last, step) != (0, "end", 1):
            found.append((f"axis {axis}", f"{start}:{last}:{step}"))
    return tuple(sorted(found))


def _zeros_around(added: Mapping[int, tuple[int, int]]) -> tuple[tuple[str, str], ...]:
    """Return the zeros added before and after each axis, as attributes."""
    found = ((f"axis {k}", f"{b} and {a} zeros") for k, (b, a) in added.items() if b or a)
    return tuple(sorted(found))


def _text(value: Any) -> str:
    if isinstance(value, onnx.TensorProto):
        return str(onnx.numpy_helper.to_array(value).tolist())
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return str([_text(item) for item in value])
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _without_unread(skeleton: Skeleton) -> Skeleton:
    """Drop nodes that no output depends on: how a shape is computed is not the network."""
    needed: set[int] = set()
    waiting = [place for place in skeleton.outputs if place >= 0]
    while waiting:
        place = waiting.pop()
        if place in needed:
            continue
        needed.add(place)
        waiting += [k for k in skeleton.nodes[place].sources if k >= 0]
    order = sorted(needed)
    moved = {old: new for new, old in enumerate(order)}

    def move(place: int) -> int:
        return moved[place] if place >= 0 else place

    nodes = (skeleton.nodes[place] for place in order)
    return Skeleton(
        nodes=tuple(replace(node, sources=tuple(map(move, node.sources))) for node in nodes),
        outputs=tuple(map(move, skeleton.outputs)),
    )
