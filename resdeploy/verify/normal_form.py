"""The skeleton of an ONNX model: its function in one normal form, from a closed list of operators.

1. Local functions are inlined, a branch whose condition is constant is taken, constants are
   computed in float64; every BatchNormalization that folds is folded.
2. Shapes are carried through the graph as polynomials of the open dimensions of the inputs, so that
   one comparison holds for every size. The first, the batch, is common to all inputs. A shape that
   depends on the values of the input is refused.
3. Each operator is written in its one way, by the rules of `normal/`.

Anything that is not on the list, or in a corner that no rule states, is refused by name: what it
computes is then not compared, and nothing is proved.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir

from resdeploy.errors import UnsupportedModelError
from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.float64 import evaluate_float64, nodes_of, tensors_of, to_float64
from resdeploy.graph.onnx_file import fed_inputs, opset_of
from resdeploy.verify.compare_structure import Affine, Numbers, Skeleton
from resdeploy.verify.normal.builder import FLOATS, Builder, Known, Tensor, Value
from resdeploy.verify.normal.contrib import CONTRIB
from resdeploy.verify.normal.dims import Dim, Size, floor_div, product, symbol
from resdeploy.verify.normal.elementwise import ELEMENTWISE
from resdeploy.verify.normal.layers import LAYERS
from resdeploy.verify.normal.movements import MOVEMENTS
from resdeploy.verify.normal.normalisations import NORMALISATIONS
from resdeploy.verify.normal.reading import Operator, Rule, known_of
from resdeploy.verify.normal.windows import WINDOWS

__all__ = ["OPERATORS", "may_fold", "skeleton_of"]

# The closed list, by domain.
OPERATORS: dict[str, dict[str, Rule]] = {
    "": {**MOVEMENTS, **ELEMENTWISE, **WINDOWS, **NORMALISATIONS, **LAYERS},
    "com.microsoft": CONTRIB,
}
_ONNX = ("", "ai.onnx")

# A BatchNorm, or the product of a frozen one.
_MAY_FOLD = frozenset({"BatchNormalization", "Mul"})


def skeleton_of(
    model: onnx.ModelProto,
    *,
    fold: bool = True,
    bias_magnitudes: Mapping[str, Array] | None = None,
    narrowest: str = "float16",
    shapes: Sequence[Sequence[Size]] | None = None,
) -> Skeleton:
    """Return the skeleton of `model`, which is not changed.

    Args:
        model: with its weights in it.
        fold: fold the BatchNormalizations that can be.
        bias_magnitudes: by the name of a layer's weight, whole or without its last part, the sum of
            the magnitudes of its bias's terms; elsewhere the bias itself.
        narrowest: the type of float to which values may be rounded on the way.
        shapes: of the inputs, in place of those that the model states.

    Raises:
        UnsupportedModelError: the model has an operator, a shape or a corner that is not on the
            closed list; the error names it.
    """
    model = _inlined(model)
    _refuse_ambiguous(model)
    dtypes = {t.name: _TYPES.get(t.data_type, "") for t in model.graph.initializer}
    # As stated: after a fold every float is in float64.
    stated = tuple(map(_dtype, model.graph.output))
    if fold and may_fold(model):
        _refuse_narrowing(model, narrowest)
        model = _folded(model)
    reader = _Reader(model, dtypes, bias_magnitudes or {}, narrowest, shapes)
    return replace(reader.skeleton(), dtypes=stated)


def may_fold(model: onnx.ModelProto) -> bool:
    """True if `model` has operators that a fold could take away."""
    return any(node.op_type in _MAY_FOLD for node in model.graph.node)


def _refuse_narrowing(model: onnx.ModelProto, narrowest: str) -> None:
    """Refuse a rounding on the way, which the fold in float64 would not see."""
    narrow = {code for code, name in _TYPES.items() if _WIDTHS[name] < _WIDTHS[narrowest]}
    stored = {tensor.data_type for tensor in tensors_of(model)}
    stored |= {value.type.tensor_type.elem_type for value in model.graph.input}
    for node in nodes_of(model):
        if node.op_type == "CastLike" and narrow & stored:
            raise UnsupportedModelError("CastLike may round.", where=node.name)
        if node.op_type == "Cast" and any(a.i in narrow for a in node.attribute if a.name == "to"):
            raise UnsupportedModelError("Cast rounds its values.", where=node.name)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` in float64 with every BatchNormalization folded that can be."""
    try:
        folded = ir.from_proto(to_float64(model))
    except ir.serde.SerdeError as error:
        raise UnsupportedModelError(
            f"The graph is damaged: {str(error.__cause__ or error).splitlines()[0]}"
        ) from error
    fold_batchnorm(folded, split_input=True)
    return ir.to_proto(folded)


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` without local functions; one in the name of an operator of ONNX is refused."""
    if not model.functions:
        return model
    taken = [f.name for f in model.functions if f.domain in OPERATORS or f.domain in _ONNX]
    if taken:
        raise UnsupportedModelError(
            "A local function has the name of an operator.", where=", ".join(taken)
        )
    inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    return inlined


def _refuse_ambiguous(model: onnx.ModelProto) -> None:
    """Refuse a graph in which a name means two values, or weights are not plain tensors."""
    graph = model.graph
    if graph.sparse_initializer:
        raise UnsupportedModelError("Sparse weights are not compared.")
    fed = [value.name for value in fed_inputs(model)]
    names = Counter([*fed, *(t.name for t in graph.initializer)])
    names.update(name for node in graph.node for name in node.output if name)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UnsupportedModelError(f"Two values have the name {twice[0]!r}.")


_TYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}
_WIDTHS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}


class _Reader:
    """Walks a model once and collects its skeleton."""

    def __init__(
        self,
        model: onnx.ModelProto,
        dtypes: Mapping[str, str],
        magnitudes: Mapping[str, Array],
        narrowest: str,
        shapes: Sequence[Sequence[Size]] | None,
    ) -> None:
        self.build = Builder()
        self.opset = opset_of(model)
        self._graph = model.graph
        self._dtypes = dtypes
        self._magnitudes = magnitudes
        self._narrowest = _WIDTHS[narrowest]
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, Value] = {}
        self._num_readers: Counter[str] = Counter()
        self._count_readers(model.graph)
        for k, value in enumerate(fed_inputs(model)):
            shape = _stated_shape(value, k) if shapes is None else tuple(shapes[k])
            tensor = Tensor(place=-k - 1, shape=shape, dtype=_dtype(value))
            self.build.inputs.append(tensor)
            self._values[value.name] = tensor

    def skeleton(self) -> Skeleton:
        """Return the skeleton."""
        self._walk(self._graph.node)
        outputs = []
        for value in self._graph.output:
            found = self._value(value.name, "")
            if not isinstance(found, Tensor):
                raise UnsupportedModelError(
                    "An output of the model is a constant.", where=value.name
                )
            outputs.append(found)
        skeleton = Skeleton(
            nodes=tuple(self.build.nodes),
            outputs=tuple(tensor.place for tensor in outputs),
            shapes=tuple(tensor.shape for tensor in outputs),
            inputs=tuple((tensor.shape, tensor.dtype) for tensor in self.build.inputs),
        )
        return skeleton.without_unread()

    def _count_readers(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if node.op_type not in ("Shape", "Size"):
                self._num_readers.update(node.input)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self._count_readers(attribute.g)
        self._num_readers.update(value.name for value in graph.output)

    def _walk(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            self.build.title = node.name or next(iter(node.output), "")
            try:
                found = self._take(node)
            except UnsupportedModelError as error:
                if not error.where:
                    error.where = self.build.title
                raise
            except (
                ValueError,
                IndexError,
                KeyError,
                TypeError,
                AssertionError,
                ZeroDivisionError,
            ) as error:
                # A graph whose sizes or attributes contradict each other.
                raise UnsupportedModelError(
                    f"{node.op_type} is not understood: {error}.", where=self.build.title
                ) from error
            for name, value in zip(node.output, found, strict=False):
                if name:
                    self._values[name] = value

    def _take(self, node: onnx.NodeProto) -> Sequence[Value]:
        domain = "" if node.domain in _ONNX else node.domain
        operands = [self._value(name, node.name) if name else None for name in node.input]
        if node.op_type == "Constant" and not domain:
            return [self._constant(node)]
        op = Operator(node, self._attributes(node), operands)
        if node.op_type == "If" and not domain:
            return self._branch(op)
        rule: Rule | None = OPERATORS.get(domain, {}).get(node.op_type)
        known = [value for value in operands if isinstance(value, Known)]
        if known and len(known) == sum(value is not None for value in operands):
            if any(value.is_open for value in known):
                if node.op_type == "Expand" and rule is not None and known[0].is_float:
                    return rule(self, op)  # weights for each sample
                return self._of_sizes(op)
            if node.op_type not in (
                "Shape",
                "Size",
                "ConstantOfShape",
                "Identity",
                "Cast",
                "CastLike",
            ):
                return self._computed(op, known)
        if rule is None:
            name = f"{domain}.{node.op_type}" if domain else node.op_type
            raise UnsupportedModelError(f"{name} is not on the closed list of operators.")
        return rule(self, op)

    def _value(self, name: str, reader: str) -> Value:
        if name in self._values:
            return self._values[name]
        tensor = self._initializers.get(name)
        if tensor is None:
            raise UnsupportedModelError(
                f"The graph is damaged: nothing computes {name!r}.", where=reader
            )
        array = onnx.numpy_helper.to_array(tensor)
        self._values[name] = known_of(array, self._dtypes.get(name) or None)
        return self._values[name]

    def _constant(self, node: onnx.NodeProto) -> Known:
        value = onnx.helper.get_node_attr_value(node, node.attribute[0].name)
        if node.attribute[0].name == "value":
            return known_of(onnx.numpy_helper.to_array(value))
        array = np.asarray(value)
        return known_of(array.astype(np.float32) if array.dtype.kind == "f" else array)

    def _branch(self, op: Operator) -> Sequence[Value]:
        """Return the values of the branch that a constant condition takes."""
        condition = op.at(0)
        if not isinstance(condition, Known) or condition.is_open:
            raise op.refuse("takes a branch by the values of the input")
        name = "then_branch" if condition.values.item() else "else_branch"
        branch = next(a.g for a in op.node.attribute if a.name == name)
        for tensor in branch.initializer:
            if tensor.name in self._values or tensor.name in self._initializers:
                raise op.refuse("has an inner value of an outer name")
            self._initializers[tensor.name] = tensor
        inner = {name for node in branch.node for name in node.output if name}
        if inner & set(self._values):
            raise op.refuse("has an inner value of an outer name")
        self._walk(branch.node)
        return [self._value(value.name, op.node.name) for value in branch.output]

    def _computed(self, op: Operator, known: Sequence[Known]) -> Sequence[Value]:
        """Return the values of an operator of constants alone, in float64."""
        if op.node.op_type.startswith(("Random", "Bernoulli", "Multinomial", "Dropout")):
            raise op.refuse("draws at random")
        inputs = {
            name: value.values
            for name, value in zip(op.node.input, op.operands, strict=True)
            if isinstance(value, Known)
        }
        graph = onnx.helper.make_graph(
            [op.node],
            "constants",
            [_value_info(name, values) for name, values in inputs.items()],
            [onnx.ValueInfoProto(name=name) for name in op.node.output if name],
        )
        domains = {"": self.opset, op.node.domain: self.opset if op.node.domain in _ONNX else 1}
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in domains.items() if d != "ai.onnx"]
        found = evaluate_float64(onnx.helper.make_model(graph, opset_imports=opsets), inputs)
        roundings = sum(value.roundings for value in known if value.is_float)
        floats = [value.dtype for value in known if value.is_float]
        values: list[Value] = []
        for name in op.node.output:
            array = found.get(name, np.zeros(0))
            dtype = array.dtype.name
            if dtype in FLOATS:
                dtype = floats[0] if floats else "float32"
            known_value = known_of(array, dtype)
            values.append(
                Known(values=known_value.values, dtype=dtype, roundings=max(1, roundings))
            )
        return values

    def _of_sizes(self, op: Operator) -> Sequence[Value]:
        """Return integers computed from open sizes."""
        arrays = [value.values for value in op.operands if isinstance(value, Known)]
        kind = op.node.op_type
        first = arrays[0]
        if kind in ("Identity", "Cast"):
            if kind == "Cast" and op.flag("to") not in (
                onnx.TensorProto.INT64,
                onnx.TensorProto.INT32,
            ):
                raise op.refuse("makes another type of an open size")
            found = first
        elif kind in ("Add", "Sub", "Mul"):
            a, b = (array.astype(object) for array in arrays)
            found = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[kind](a, b)
        elif kind == "Div":
            a, b = np.broadcast_arrays(*(array.astype(object) for array in arrays))
            quotients = [
                floor_div(_plain_size(x), _plain_size(y))
                for x, y in zip(a.ravel(), b.ravel(), strict=True)
            ]
            found = np.array([*quotients, None], object)[:-1].reshape(a.shape)
        elif kind == "Concat":
            found = np.concatenate([array.astype(object) for array in arrays], axis=op.flag("axis"))
        elif kind == "Gather":
            found = np.take(first, arrays[1].astype(np.int64), axis=op.flag("axis"))
        elif kind == "Slice":
            starts, ends = op.closed_ints(1, "starts"), op.closed_ints(2, "ends")
            steps = op.closed_ints(4) or [1]
            if first.ndim != 1 or starts is None or ends is None:
                raise op.refuse("cuts sizes of several axes")
            found = first[slice(starts[0], ends[0], steps[0])]
        elif kind == "Squeeze":
            axes = op.closed_ints(1, "axes")
            found = np.squeeze(first, None if axes is None else tuple(axes))
        elif kind == "Unsqueeze":
            found = np.expand_dims(first, tuple(op.closed_ints(1, "axes") or ()))
        elif kind == "Reshape":
            found = first.reshape([int(n) for n in arrays[1]])
        elif kind == "ReduceProd":
            if first.ndim != 1 or op.flag("noop_with_empty_axes"):
                raise op.refuse("multiplies sizes of several axes, or none")
            found = np.array([product(first.tolist()), None], object)[:-1]
            found = found if op.flag("keepdims", 1) else found.reshape(())
        elif kind == "Equal":
            found = np.array(
                [_same(x, y) for x, y in zip(*np.broadcast_arrays(*arrays), strict=True)]
            )
        elif kind == "Where":
            found = np.where(
                *(a.astype(bool) if k == 0 else a.astype(object) for k, a in enumerate(arrays))
            )
        else:
            raise op.refuse("computes with open sizes")
        found = np.asarray(found)
        if found.dtype == object and not any(isinstance(v, Dim) for v in found.ravel()):
            found = found.astype(np.int64)
        return [Known(values=found, dtype="bool" if found.dtype == bool else "int64")]

    # --- what the rules ask ---

    def numbers(self, known: Known) -> Numbers:
        """Return constants to be compared within their roundings."""
        if known.is_open or not known.is_float:
            raise UnsupportedModelError("A constant is no real number.")
        values = np.asarray(known.values, np.float64)
        return Numbers(
            values=values,
            magnitude=np.abs(values),
            dtype=self._stored(known.dtype),
            roundings=known.roundings,
        )

    def affine(self, node: onnx.NodeProto, weight: Known, bias: Array, num_products: int) -> Affine:
        """Return a layer's numbers."""
        name = node.input[1]
        known = self._magnitudes.get(name, self._magnitudes.get(name.rpartition(".")[0]))
        magnitude = np.abs(bias)
        if known is not None and known.shape == magnitude.shape:
            magnitude = np.maximum(magnitude, known)
        return Affine(
            weight=weight.values,
            bias=np.asarray(bias, np.float64),
            dtype=self._stored(weight.dtype),
            num_products=num_products,
            bias_magnitude=magnitude,
            roundings=weight.roundings,
        )

    def is_read_once(self, name: str) -> bool:
        """True for a value with a single reader."""
        return self._num_readers[name] == 1

    def exact_cast(self, dtype: str) -> bool:
        """True for a type of float to which the claimed arithmetic may round."""
        return _WIDTHS[dtype] >= self._narrowest

    def _stored(self, dtype: str) -> str:
        # A fold leaves float64, of weights that were float32 and will be so again.
        return "float32" if dtype == "float64" and "float64" not in self._dtypes.values() else dtype

    def _attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        """Return a node's attributes, with those of the specification where it states none."""
        found: dict[str, Any] = {}
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
            for name, attribute in schema.attributes.items():
                if attribute.default_value.name:
                    found[name] = onnx.helper.get_attribute_value(attribute.default_value)
            unknown = [a.name for a in node.attribute if a.name not in schema.attributes]
            if unknown:
                raise UnsupportedModelError(
                    f"{node.op_type} has no attribute {unknown[0]!r} in opset {self.opset}."
                )
        except onnx.defs.SchemaError:
            pass  # an operator of another domain says all there is to know
        for attribute in node.attribute:
            found[attribute.name] = onnx.helper.get_attribute_value(attribute)
        return found


def _plain_size(value: Any) -> Size:
    return value if isinstance(value, Dim) else int(value)


def _same(first: Any, second: Any) -> bool:
    """True for equal sizes; an open size is positive."""
    if first == second:
        return True
    closed = [int(v) for v in (first, second) if not isinstance(v, Dim)]
    if len(closed) == 2 or (closed and closed[0] <= 0):
        return False
    raise UnsupportedModelError(f"Whether {first} is {second} depends on an open size.")


def _stated_shape(value: onnx.ValueInfoProto, which: int) -> tuple[Size, ...]:
    """Return an input's shape; open dimensions are named by their place, but for the one batch."""
    if not value.type.tensor_type.HasField("shape"):
        raise UnsupportedModelError("An input has no shape.", where=value.name)
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else symbol(f"n{which if axis else 0}.{axis}")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    )


def _dtype(value: onnx.ValueInfoProto) -> str:
    if not value.type.tensor_type.elem_type:
        raise UnsupportedModelError("An input or output states no type.", where=value.name)
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name


def _value_info(name: str, values: Array) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, values.shape)
