"""Corners of the ONNX specification in which the float64 evaluator is no reference.

There two evaluators give two answers: by a reading of the text, at random, by the width of the
floats, or by the machine. Each is refused by name. Found with the table of tests/graph, which runs
every operator here and in ONNX Runtime over its attributes, at each opset that changed it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun, RefAttrName
from onnx.reference.ops import load_op

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.float64_operators import WRITTEN_OUT
from resdeploy.graph.float64_resize import Axis, nearest, places, resized_axes

__all__ = ["CORNERS", "GUARDED", "OLDEST_OPSET", "Corner", "CornerError", "UnknownOperatorError"]

# Before it, operators broadcast by an attribute, and ONNX Runtime does not promise to read them.
OLDEST_OPSET = 7


class UnknownOperatorError(UnsupportedModelError):
    """An operator, or a corner of one, whose meaning in float64 is not known here."""


class CornerError(UnknownOperatorError):
    """A corner of an operator, in which two evaluators do not agree."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """An operator about to be computed."""

    operator: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: Sequence[Array | None]
    num_outputs: int

    @property
    def x(self) -> Array:
        """The first input."""
        return np.asarray(self.inputs[0])

    def input(self, at: int) -> Array | None:
        """Return an input; None where it is left out."""
        return self.inputs[at] if at < len(self.inputs) else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corner:
    """A corner that is refused.

    Attributes:
        operators: those that have it.
        name: as in docs/closed-world.md.
        why: the end of a sentence.
        holds: whether a call is in it.
    """

    operators: tuple[str, ...]
    name: str
    why: str
    holds: Callable[[Call], bool]


def _pads_same(call: Call) -> bool:
    return str(call.attributes.get("auto_pad")).startswith("SAME")


def _is_dilated(call: Call) -> bool:
    return any(gap != 1 for gap in call.attributes.get("dilations") or ())


def _has_nan(call: Call) -> bool:
    floats = (x for x in call.inputs if x is not None and x.dtype.kind == "f")
    return any(bool(np.isnan(x).any()) for x in floats)


def _is_given(call: Call, at: int) -> bool:
    value = call.input(at)
    return value is not None and bool(np.asarray(value).any())


def _is_unbounded(call: Call) -> bool:
    if call.opset < 11 or call.x.dtype.kind != "f":
        return False
    sides = ((call.input(1), -np.inf), (call.input(2), np.inf))
    return any(bound is None and bool((call.x == side).any()) for bound, side in sides)


def _target(call: Call) -> np.dtype[Any]:
    """Return the type that Cast or CastLike makes."""
    if call.operator == "CastLike":
        return np.asarray(call.input(1)).dtype
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(call.attributes["to"]))


def _casts_an_odd_type(call: Call) -> bool:
    return not {call.x.dtype, _target(call)} <= _PLAIN


_PLAIN = frozenset(
    {
        *map(np.dtype, (np.float64, np.bool_, np.int8, np.int16, np.int32, np.int64)),
        *map(np.dtype, (np.uint8, np.uint16, np.uint32, np.uint64)),
    }
)


def _overflows(call: Call) -> bool:
    target = _target(call)
    if target.kind not in "iu" or call.x.dtype.kind != "f":
        return False
    limits, whole = np.iinfo(target), np.trunc(call.x)
    # The largest integer of 64 bits is no float; the power of two above it is.
    return not bool(((whole >= limits.min) & (whole < float(limits.max) + 1)).all())


def _divides_by_zero(call: Call) -> bool:
    return call.x.dtype.kind in "iu" and not np.asarray(call.input(1)).all()


def _is_negative_power(call: Call) -> bool:
    power = np.asarray(call.input(1))
    return call.x.dtype.kind in "iu" and power.dtype.kind in "iu" and bool((power < 0).any())


def _counts_by_rounding(call: Call) -> bool:
    if call.x.dtype.kind != "f":
        return False
    counts = {
        int(np.ceil((limit - start) / step))
        for start, limit, step in (
            [kind(np.asarray(value).item()) for value in call.inputs]
            for kind in (np.float32, np.float64)
        )
    }
    return len(counts) > 1


def _axes_of(call: Call) -> list[Axis]:
    """Return the axes that Resize or Upsample resizes."""
    scales = call.input(2 if call.opset >= 11 else 1)
    if call.operator == "Upsample" and call.opset < 9:
        scales = np.asarray(call.attributes["scales"])
    policy = str(call.attributes.get("keep_aspect_ratio_policy", "stretch"))
    sizes = call.input(3) if call.opset >= 11 else None
    return resized_axes(call.x.shape, scales, sizes, call.attributes.get("axes"), policy)


def _transformation(call: Call) -> str:
    modern = call.opset >= 11
    return str(call.attributes["coordinate_transformation_mode"]) if modern else "asymmetric"


def _resizes_by_rounding(call: Call) -> bool:
    sizes = call.input(3)
    return (sizes is None or not sizes.size) and any(
        int(np.float32(axis.scale) * np.float32(axis.length)) != axis.resized
        for axis in _axes_of(call)
    )


def _has_no_whole_size(call: Call) -> bool:
    """True where a fraction of the size decides where places lie."""
    kinds = {"align_corners": True, "pytorch_half_pixel": False}
    always = kinds.get(_transformation(call))
    return always is not None and any(
        abs(axis.length * axis.scale - axis.resized) > _FLOAT32_NOISE * axis.resized
        for axis in _axes_of(call)
        if always or axis.resized == 1
    )


# Of a place: some roundings in float32.
_FLOAT32_NOISE = 4 * 2.0**-24


def _chooses_by_rounding(call: Call) -> bool:
    """True if a rounding in float32 may take another value than float64 does."""
    if call.attributes["mode"] != "nearest":
        return False
    transformation = _transformation(call)
    rounding = str(call.attributes["nearest_mode"]) if call.opset >= 11 else "floor"
    for axis in _axes_of(call):
        exact, single = (places(axis, transformation, np.dtype(t)) for t in ("f8", "f4"))
        noise = _FLOAT32_NOISE * (np.abs(exact) + 1)
        near = nearest(exact - noise, axis, rounding) != nearest(exact + noise, axis, rounding)
        is_exact = transformation == "align_corners" or (
            transformation != "half_pixel_symmetric" and float(np.float32(axis.scale)) == axis.scale
        )
        if (near & ((exact != single) | (not is_exact))).any():
            return True
    return False


CORNERS = (
    Corner(
        operators=("AveragePool", "LpPool", "MaxPool"),
        name="auto_pad = SAME with dilations",
        why="ONNX Runtime pads as if there were no dilations",
        holds=lambda call: _pads_same(call) and _is_dilated(call),
    ),
    Corner(
        operators=("MaxPool",),
        name="Indices",
        why="only the values are computed here",
        holds=lambda call: call.num_outputs > 1,
    ),
    Corner(
        operators=("ConvTranspose",),
        name="auto_pad = SAME, or output_shape",
        why="the opsets divide the padding in two ways",
        holds=lambda call: _pads_same(call) or bool(call.attributes.get("output_shape")),
    ),
    Corner(
        operators=("BatchNormalization",),
        name="training_mode = 1, spatial = 0, further outputs",
        why="its statistics are not those of the file",
        holds=lambda call: bool(
            call.attributes.get("training_mode")
            or call.attributes.get("spatial") == 0
            or call.num_outputs > 1
        ),
    ),
    Corner(
        operators=("LayerNormalization", "GroupNormalization"),
        name="stash_type other than float",
        why="the type in which the statistics are kept is not that of the reference",
        holds=lambda call: call.attributes.get("stash_type", 1) != onnx.TensorProto.FLOAT,
    ),
    Corner(
        operators=("Dropout",),
        name="training_mode = 1",
        why="it draws at random",
        holds=lambda call: call.opset >= 12 and _is_given(call, 2),
    ),
    Corner(
        operators=("Dropout",),
        name="mask before opset 12",
        why="it is of floats to one evaluator, of truths to another",
        holds=lambda call: call.opset < 12 and call.num_outputs > 1,
    ),
    Corner(
        operators=("ArgMax", "ArgMin", "Clip", "MaxPool", "ReduceMax", "ReduceMin", "TopK"),
        name="NaN",
        why="the specification does not order NaN",
        holds=_has_nan,
    ),
    Corner(
        operators=("Clip",),
        name="an infinite value without a bound on its side",
        why="ONNX Runtime takes the largest float32 for the bound",
        holds=_is_unbounded,
    ),
    Corner(
        operators=("TopK",),
        name="sorted = 0",
        why="the order is left open",
        holds=lambda call: not call.attributes.get("sorted", 1),
    ),
    Corner(
        operators=("ReduceMean",),
        name="no elements",
        why="ONNX Runtime makes it 0",
        holds=lambda call: not call.x.size,
    ),
    Corner(
        operators=("ReduceLogSumExp", "ReduceSumSquare"),
        name="integers",
        why="the type of the sum is not that of the input",
        holds=lambda call: call.x.dtype.kind != "f",
    ),
    Corner(
        operators=("Cast", "CastLike"),
        name="types other than floats of 16 bits and more, integers of 8 bits and more, bool",
        why="its rounding is not that of the reference",
        holds=_casts_an_odd_type,
    ),
    Corner(
        operators=("Cast", "CastLike"),
        name="a float beyond the integers of the type",
        why="the result is that of the machine",
        holds=_overflows,
    ),
    Corner(
        operators=("Div",),
        name="integers by zero",
        why="the result is not defined",
        holds=_divides_by_zero,
    ),
    Corner(
        operators=("Pow",),
        name="integers to negative integers",
        why="the result is no integer",
        holds=_is_negative_power,
    ),
    Corner(
        operators=("Range",),
        name="a number of floats that depends on rounding",
        why="float32 and float64 count differently",
        holds=_counts_by_rounding,
    ),
    Corner(
        operators=("Resize",),
        name="coordinate_transformation_mode = tf_…",
        why="what lies outside the region is filled in two ways",
        holds=lambda call: _transformation(call).startswith("tf_"),
    ),
    Corner(
        operators=("Resize", "Upsample"),
        name="scales that give another size in float32",
        why="float32 and float64 round the size differently",
        holds=_resizes_by_rounding,
    ),
    Corner(
        operators=("Resize",),
        name="align_corners or pytorch_half_pixel, scales without a whole size",
        why="onnx's tests count the fraction, ONNX Runtime does not",
        holds=_has_no_whole_size,
    ),
    Corner(
        operators=("Resize",),
        name="nearest to fewer in opset 10",
        why="ONNX Runtime takes the next value above",
        holds=lambda call: (
            call.opset == 10
            and call.attributes["mode"] == "nearest"
            and any(axis.scale < 1 for axis in _axes_of(call))
        ),
    ),
    Corner(
        operators=("Resize",),
        name="keep_aspect_ratio_policy with negative axes",
        why="ONNX Runtime leaves the size as it is",
        holds=lambda call: (
            call.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch"
            and min(call.attributes.get("axes") or [0]) < 0
        ),
    ),
    Corner(
        operators=("Resize", "Upsample"),
        name="nearest, where rounding may take another value",
        why="a place lies halfway, but for its rounding in float32",
        holds=_chooses_by_rounding,
    ),
)


class _Guarded(OpRun):
    """An operator behind its corners: written out here, or onnx's own."""

    def __init__(self, node: Any, run_params: Any, schema: Any = None) -> None:
        self._opset = run_params["opsets"][""]
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset)
        except onnx.defs.SchemaError as error:
            raise NotImplementedError(f"{node.op_type} in opset {self._opset}") from error
        super().__init__(node, run_params, schema)
        written = WRITTEN_OUT.get(node.op_type)
        self._inner = (
            load_op("", node.op_type, self._opset, evaluator_cls=ReferenceEvaluator)(
                node, run_params
            )
            if written is None
            else written(node, run_params, schema)
        )

    def _run(self, *args: Any, **attributes: Any) -> tuple[Array, ...]:
        raise AssertionError("run is not left to OpRun")

    def run(self, *args: Any, linked_attributes: Any = None, **others: Any) -> tuple[Array, ...]:
        """Refuse a call in a corner, or compute it."""
        linked = linked_attributes or {}
        values = {name: getattr(self, name) for name in self.attributes_names_}
        call = Call(
            operator=self.op_type,
            opset=self._opset,
            attributes={
                name: linked.get(value.name) if isinstance(value, RefAttrName) else value
                for name, value in values.items()
            },
            inputs=args,
            num_outputs=sum(1 for name in self.output if name),
        )
        for corner in CORNERS:
            if self.op_type in corner.operators and corner.holds(call):
                raise CornerError(
                    f"{self.op_type} ({corner.name}) is no reference in float64: {corner.why}.",
                    where=f"the node {self.onnx_node.name or self.output[0]!r}",
                )
        if linked_attributes is not None:
            others["linked_attributes"] = linked_attributes
        return tuple(self._inner.run(*args, **others))


GUARDED: tuple[type[OpRun], ...] = tuple(
    type(name, (_Guarded,), {})
    for name in sorted({*WRITTEN_OUT, *(name for corner in CORNERS for name in corner.operators)})
)
