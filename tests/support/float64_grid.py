"""The table of operators, inputs and attributes that the float64 evaluator is checked over.

A row is an operator, its inputs, and its attributes: a tuple of values is tried value by value. The
runtime that it is compared with is here too.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

RNG = np.random.default_rng(0)
NEWEST_OPSET = 23  # the newest that ONNX Runtime 1.24 promises


def reals(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape), np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def number(value: float, kind: Any = np.float32) -> np.ndarray:
    return np.array(value, kind)


class Row:
    """An operator over a product of attributes."""

    def __init__(self, op, *inputs, opsets=None, outputs=1, constants=(), **attributes) -> None:
        self.op, self.inputs, self.outputs, self.constants = op, inputs, outputs, constants
        self.opsets = opsets or opsets_of(op)
        self.attributes = attributes

    def models(self) -> Iterator[tuple[str, onnx.ModelProto, dict[str, np.ndarray]]]:
        """Yield a name, a model of the operator alone, and its inputs."""
        choices = [v if isinstance(v, tuple) else (v,) for v in self.attributes.values()]
        for values in itertools.product(*choices):
            attributes = dict(zip(self.attributes, values, strict=True))
            given = {k: v for k, v in attributes.items() if v is not None}
            for opset in self.opsets:
                yield f"{self.op}-{opset} {given}", *self._model(opset, given)

    def _model(self, opset, attributes):
        names = [f"i{at}" if x is not None else "" for at, x in enumerate(self.inputs)]
        while names and not names[-1]:
            names.pop()
        outputs = [f"o{at}" for at in range(self.outputs)]
        values = {name: x for name, x in zip(names, self.inputs, strict=False) if name}
        constants = {f"i{at}" for at in self.constants}
        feeds = {name: x for name, x in values.items() if name not in constants}
        graph = helper.make_graph(
            [helper.make_node(self.op, names, outputs, **attributes)],
            "operator",
            [
                helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
                for k, x in feeds.items()
            ],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [numpy_helper.from_array(values[name], name) for name in constants & set(values)],
        )
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8), feeds


def opsets_of(op: str) -> list[int]:
    """Return one opset of each definition of an operator, from 7 on."""
    since = sorted(
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == op and not schema.domain and schema.since_version <= NEWEST_OPSET
    )
    ends = [*since[1:], NEWEST_OPSET + 1]
    return sorted({max(7, first) for first, end in zip(since, ends, strict=True) if end > 7})


def in_runtime(model: bytes, feeds) -> dict[str, np.ndarray]:
    """Return the outputs of ONNX Runtime without optimisations, by name."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def in_runtime_or_none(model: onnx.ModelProto, feeds) -> dict[str, np.ndarray] | None:
    """Return the outputs by name; None where ONNX Runtime does not know the operator so."""
    try:
        return in_runtime(model.SerializeToString(), feeds)
    except Exception:  # of many types, one for each status
        return None


X = reals(2, 4, 13, 13)
SMALL = reals(2, 3, 4)
ODD = np.concatenate(
    [floats(0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 3.5, 1e-30, 60, -60, 20, -20), reals(49) * 3]
).reshape(8, 8)
POSITIVE = np.abs(ODD) + np.float32(0.01)
CHANNEL = [reals(4), reals(4), reals(4), np.abs(reals(4)) + np.float32(0.1)]
WHOLE = RNG.integers(1, 6, (4, 5)) * RNG.choice([-1, 1], (4, 5))
TIES = RNG.integers(0, 3, (3, 4, 5)).astype(np.float32)
TRUTHS = [RNG.random((3, 4)) > 0.5, RNG.random(4) > 0.5]
IMAGE = reals(1, 2, 4, 5)
SLICED = reals(5, 6)
REDUCTIONS = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
    *("ReduceProd", "ReduceSumSquare", "ReduceLogSumExp"),
)


def _windows() -> Iterator[Row]:
    for op, more in (
        ("AveragePool", {"count_include_pad": (None, 1)}),
        ("MaxPool", {}),
        ("LpPool", {"p": (None, 1, 3)}),
    ):
        ceil, dilations = {"ceil_mode": (None, 1)}, {"dilations": (None, [2, 2])}
        strides = (None, [2, 2], [3, 3], [3, 2])
        pads = (None, [1, 1, 1, 1], [0, 0, 1, 1], [2, 0, 0, 1])
        kernel = {"kernel_shape": [3, 3]}
        yield Row(op, X, strides=strides, pads=pads, **kernel, **ceil, **dilations, **more)
        same = ("SAME_UPPER", "SAME_LOWER", "VALID")
        yield Row(op, X, strides=strides, auto_pad=same, **kernel, **ceil, **dilations, **more)
        steps = {"strides": (None, [2], [5]), "pads": (None, [1, 1])}
        yield Row(op, reals(2, 3, 11), kernel_shape=([3], [2]), **steps, **ceil, **more)
        steps = {"strides": (None, [3, 1, 2]), "pads": (None, [1, 0, 1, 0, 1, 1])}
        yield Row(op, reals(1, 2, 7, 8, 6), kernel_shape=[3, 2, 3], **steps, **ceil, **more)
    pads = (None, [1, 0, 2, 1])
    steps = {"strides": (None, [2, 1], [3, 2]), "dilations": (None, [2, 1]), "group": 2}
    taps = [reals(6, 2, 3, 2), reals(6)]
    yield Row("Conv", reals(2, 4, 9, 8), *taps, pads=pads, **steps)
    yield Row("Conv", reals(2, 4, 9, 8), *taps, auto_pad=("SAME_UPPER", "SAME_LOWER"), **steps)
    yield Row("Conv", reals(2, 4, 9), reals(6, 4, 3), strides=(None, [2]), dilations=(None, [2]))
    yield Row("Conv", reals(2, 4, 5, 6, 5), reals(6, 4, 3, 3, 3), strides=(None, [2, 1, 2]))
    wide = [reals(2, 4, 5, 6), reals(4, 3, 3, 2), reals(6)]
    more = {"pads": (None, [1, 0, 0, 1]), "output_padding": (None, [0, 0])}
    yield Row("ConvTranspose", *wide, **steps, **more)
    yield Row("ConvTranspose", *wide, group=2, strides=[3, 2], output_padding=[1, 1])
    yield Row("ConvTranspose", reals(2, 4, 5), reals(4, 3, 3), strides=(None, [2]))
    yield Row("GlobalAveragePool", X)
    yield Row("GlobalMaxPool", X)


def _normalisations() -> Iterator[Row]:
    yield Row("BatchNormalization", X, *CHANNEL, epsilon=(None, 1e-2))
    yield Row("BatchNormalization", reals(3, 4), *CHANNEL)
    yield Row("BatchNormalization", reals(3, 4, 5), *CHANNEL)
    yield Row("InstanceNormalization", X, *CHANNEL[:2], epsilon=(None, 0.1))
    yield Row("InstanceNormalization", reals(2, 4, 6), *CHANNEL[:2])
    wide = reals(2, 3, 4, 5)
    for axis, shape in ((-1, (5,)), (2, (4, 5)), (1, (3, 4, 5)), (-1, (1,)), (2, (1, 5))):
        parts = reals(*shape), reals(*shape)
        yield Row("LayerNormalization", wide, *parts, axis=axis, epsilon=(None, 0.1))
    yield Row("LayerNormalization", wide, reals(5), axis=(None, -1))
    parts = reals(3), reals(3)
    yield Row("GroupNormalization", reals(2, 6, 4, 5), *parts, num_groups=3, opsets=[18])
    parts = reals(6), reals(6)
    groups = (1, 2, 6)
    yield Row("GroupNormalization", reals(2, 6, 4), *parts, num_groups=groups, opsets=[21])
    yield Row("LRN", X, size=(1, 2, 3, 4, 7), alpha=(None, 0.3), beta=(None, 0.6), bias=(None, 2.0))
    some = reals(3, 4, 5)
    some[0] = 0
    yield Row("LpNormalization", some, axis=(None, 0, 1, -2), p=(None, 1, 2))
    for op in ("Softmax", "LogSoftmax"):
        yield Row(op, SMALL, axis=(None, 0, 1, -2))
        yield Row(op, SMALL * 100)
        yield Row(op, reals(2, 3, 4, 2), axis=(None, 2))


def _elementwise() -> Iterator[Row]:
    for op in (
        *("Relu", "Sigmoid", "HardSwish", "Softplus", "Softsign", "Tanh", "Mish", "Erf", "Exp"),
        *("Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos"),
    ):
        yield Row(op, ODD)
    for op in ("Log", "Sqrt", "Reciprocal"):
        yield Row(op, POSITIVE)
    for op in ("Elu", "Celu", "LeakyRelu", "ThresholdedRelu"):
        yield Row(op, ODD, alpha=(None, 0.3))
    yield Row("Selu", ODD, alpha=(None, 2.0), gamma=(None, 1.5))
    yield Row("HardSigmoid", ODD, alpha=(None, 0.3), beta=(None, 0.1))
    yield Row("Gelu", ODD, approximate=(None, "none", "tanh"))
    for slope in (reals(8), reals(8, 1), reals(1)):
        yield Row("PRelu", ODD, slope)
    for low, high in ((-1, 1), (1, -1), (None, 1), (0, None)):
        bounds = [None if bound is None else number(bound) for bound in (low, high)]
        yield Row("Clip", ODD, *bounds, opsets=[11, 12, 13])
        low, high = (None if bound is None else float(bound) for bound in (low, high))
        yield Row("Clip", ODD, min=low, max=high, opsets=[7])
    yield Row("Clip", WHOLE, number(3, np.int64), number(1, np.int64), opsets=[12, 13])


def _pairs() -> Iterator[Row]:
    arithmetic = ("Add", "Sub", "Mul", "Div")
    compared = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    many = ("Max", "Min", "Sum", "Mean")
    for op in (*arithmetic, *compared, *many):
        yield Row(op, reals(2, 1, 4), reals(3, 1))
        yield Row(op, ODD, POSITIVE.T.copy())
    for op, kind in itertools.product((*arithmetic, *compared, "Max"), (np.int32, np.int64)):
        yield Row(op, WHOLE.astype(kind), WHOLE[::-1].astype(kind))
    for op in many:
        yield Row(op, reals(3))
        yield Row(op, reals(2, 1, 3), reals(4, 1), reals(1))
    yield Row("Pow", np.abs(reals(3, 4)), number(2, np.int64))
    yield Row("Pow", reals(3, 4), number(2))
    yield Row("Pow", WHOLE, number(3, np.int64))
    for op in ("And", "Or", "Equal"):
        yield Row(op, *TRUTHS)
    yield Row("Not", TRUTHS[0])
    yield Row("Where", TRUTHS[0][:, :1], reals(3, 4), reals(4))
    yield Row("MatMul", reals(2, 1, 3, 4), reals(5, 4, 2))
    yield Row("MatMul", reals(4), reals(4, 5))
    yield Row("Gemm", reals(3, 4), reals(4, 5), reals(5), alpha=(None, 0.5), beta=(None, 2.0))
    yield Row("Gemm", reals(4, 3), reals(5, 4), reals(3, 1), transA=1, transB=1)
    for equation, shapes in (
        ("ij,jk->ki", ((2, 3), (3, 4))),
        ("ii->i", ((3, 3),)),
        ("ij,jk", ((2, 3), (3, 4))),
        ("bA,Ac", ((2, 3), (3, 4))),
        ("bhqd,bhkd->bhqk", ((1, 2, 3, 4), (1, 2, 5, 4))),
        ("...i,...i", ((2, 3), (2, 3))),
        ("ij->", ((2, 3),)),
    ):
        yield Row("Einsum", *(reals(*shape) for shape in shapes), equation=equation)


def _reductions() -> Iterator[Row]:
    for op in REDUCTIONS:
        moved = 13 if op == "ReduceSum" else 18
        older = [opset for opset in opsets_of(op) if opset < moved]
        newer = [opset for opset in opsets_of(op) if opset >= moved]
        keep = {"keepdims": (None, 0)}
        yield Row(op, SMALL, axes=(None, [0], [1, -1]), opsets=older, **keep)
        empty = {"noop_with_empty_axes": (None, 1)}
        for axes in (None, ints(), ints(0), ints(1, -1)):
            yield Row(op, SMALL, axes, opsets=newer, **keep, **empty)
    for op in ("ArgMax", "ArgMin"):
        yield Row(op, TIES, axis=(None, 1, -1), keepdims=(None, 0))
        last = {"select_last_index": (0, 1)}
        yield Row(op, TIES, axis=(None, 1, -1), opsets=[12, 13], **last)
    for size in (1, 3):
        yield Row("TopK", TIES, ints(size), axis=(0, -1), outputs=2, opsets=[10, 11])
        yield Row("TopK", TIES, ints(size), largest=(0, 1), outputs=2, opsets=[11])
    for axis in (0, -1):
        options = {"exclusive": (None, 1), "reverse": (None, 1)}
        yield Row("CumSum", SMALL, number(axis, np.int64), **options)


def _shapes() -> Iterator[Row]:
    for shape in (ints(4, 6), ints(0, -1), ints(-1), ints(0, 0, 2, -1)):
        yield Row("Reshape", SMALL, shape, constants=(1,))
    yield Row("Reshape", reals(0, 3), ints(3, 0), allowzero=1, opsets=[14, 19])
    yield Row("Flatten", reals(2, 3, 4, 5), axis=(None, 0, 4, -1), opsets=[11, 13])
    thin = reals(1, 3, 1, 4)
    yield Row("Squeeze", thin, axes=(None, [0], [-2], [0, 2]), opsets=[11])
    yield Row("Squeeze", thin, ints(-2), opsets=[13, 21])
    yield Row("Unsqueeze", SMALL, axes=([0], [4, 0], [2, 1], [0, -1]), opsets=[11])
    for axes in (ints(4, 0), ints(2, 1), ints(-1, 0)):
        yield Row("Unsqueeze", SMALL, axes, opsets=[13, 21])
    yield Row("Transpose", SMALL, perm=(None, [2, 0, 1]))
    yield Row("Concat", SMALL, reals(2, 3, 4), axis=(0, -1))
    sheet = reals(6, 7)
    yield Row("Split", sheet, axis=1, split=([2, 5], [0, 7]), outputs=2, opsets=[7, 11])
    yield Row("Split", sheet, ints(2, 5), axis=(1, -1), outputs=2, opsets=[13, 18])
    yield Row("Split", reals(7), num_outputs=4, outputs=4, opsets=[18])
    for start, end, axis, step in (
        (1, 3, 0, 1),
        (-1, -100, 1, -1),
        (4, 0, 0, -2),
        (0, 100, 1, 3),
        (5, -(2**63), -1, -1),
        (-100, 2**63 - 1, 0, 2),
        (3, 1, 0, 1),
        (1, 1, 0, -1),
    ):
        given = [ints(value) for value in (start, end, axis, step)]
        yield Row("Slice", SLICED, *given, opsets=[10, 11, 13])
    yield Row("Slice", SLICED, starts=([1], [-3]), ends=([3], [100]), axes=[0], opsets=[7])
    for index in (ints(0, 2), ints(-1, -2), number(-1, np.int64)):
        yield Row("Gather", reals(3, 4, 5), index, axis=(None, 1, -1))
    yield Row("Expand", reals(3, 1), ints(2, 3, 4))
    yield Row("Expand", reals(3, 4), ints(3, 1))
    yield Row("Tile", reals(2, 3), ints(2, 2))
    modes = (None, "constant", "edge", "reflect")
    for pads in (ints(0, 0, 1, 2, 0, 0, 2, 1), ints(0, 0, -1, 1, 0, 0, 2, -2)):
        yield Row("Pad", IMAGE, pads=list(pads), mode=modes, value=(None, 0.5), opsets=[7])
        yield Row("Pad", IMAGE, pads, mode=modes, opsets=[11, 13, 18, 19])
        yield Row("Pad", IMAGE, pads, number(1.5), mode=modes, opsets=[11, 13, 18, 19])
        yield Row("Pad", IMAGE, pads, mode="wrap", opsets=[19])
    yield Row("Pad", IMAGE, ints(1, 2, 2, 1), None, ints(-1, 2), mode=modes, opsets=[18, 19])
    yield Row("DepthToSpace", reals(2, 12, 3, 4), blocksize=2, mode=("DCR", "CRD"), opsets=[11, 13])
    yield Row("SpaceToDepth", reals(2, 3, 4, 6), blocksize=2)
    yield Row("Identity", SMALL)
    yield Row("Dropout", SMALL, ratio=(None, 0.3), opsets=[7, 10])
    yield Row("Dropout", SMALL, number(0.3), outputs=2, opsets=[12, 13, 22])
    some = floats(0, -0.5, 0.5, 1.5, -2.7, 3.99, 100.7, -100.2)
    kept = ("INT8", "INT16", "INT32", "INT64", "BOOL", "FLOAT", "DOUBLE")
    targets = tuple(getattr(onnx.TensorProto, name) for name in kept)
    yield Row("Cast", some, to=targets, opsets=[9, 13, 19, 21, 23])
    yield Row("Cast", ints(-3, 0, 200, -200, 70000), to=targets, opsets=[13])
    yield Row("CastLike", some, ints(1))
    yield Row("CastLike", ints(1, 2), some)
    yield Row("Shape", SMALL, start=(None, 1, -1, -7), end=(None, 2, -1, 9), opsets=[15, 19, 21])
    yield Row("Shape", SMALL, opsets=[7, 13])
    yield Row("Size", SMALL)
    yield Row("ConstantOfShape", ints(2, 3))
    values = [np.array([value], kind) for value, kind in ((2, np.float32), (3, np.int64))]
    tensors = tuple(numpy_helper.from_array(value) for value in values)
    yield Row("ConstantOfShape", ints(2), value=tensors)
    yield Row("Constant", value=tensors, opsets=[13])
    for start, limit, delta in ((1, 10, 3), (10, 0, -3), (3, 1, 1)):
        for kind in (np.float32, np.int64):
            yield Row("Range", *(number(value, kind) for value in (start, limit, delta)))


TRANSFORMATIONS = (
    *("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"),
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _resizes() -> Iterator[Row]:
    for scales, sizes in (
        ((1, 1, 2, 2), (1, 2, 8, 10)),
        ((1, 1, 1.5, 1.6), (1, 2, 6, 8)),
        ((1, 1, 0.5, 0.6), (1, 2, 2, 3)),
        ((1, 1, 0.25, 0.2), (1, 2, 1, 1)),
        ((1, 1, 2.3, 0.77), (1, 2, 9, 3)),
    ):
        for given in ((floats(*scales),), (None, ints(*sizes))):
            for opset in (11, 13, 18, 19):
                none = None if opset > 11 else floats()
                inputs = [IMAGE, none, *(none if part is None else part for part in given)]
                common = {
                    "opsets": [opset],
                    "constants": (1, 2, 3),
                    "coordinate_transformation_mode": TRANSFORMATIONS,
                }
                yield Row("Resize", *inputs, mode="nearest", nearest_mode=ROUNDINGS, **common)
                smooth = {"antialias": (0, 1)} if opset > 13 else {}
                yield Row("Resize", *inputs, mode="linear", **smooth, **common)
                cubic = {"cubic_coeff_a": (None, -0.5), "exclude_outside": (None, 1)}
                yield Row("Resize", *inputs, mode="cubic", **cubic, **smooth, **common)
    for mode in ("nearest", "linear", "cubic"):
        for policy in ("stretch", "not_larger", "not_smaller"):
            more = {"mode": mode, "keep_aspect_ratio_policy": policy, "axes": ([2, 3], [3, 2])}
            yield Row("Resize", IMAGE, None, None, ints(8, 7), opsets=[18, 19], **more)
        line = [reals(1, 2, 5), None, floats(1, 1, 2)]
        yield Row("Resize", *line, mode=mode, opsets=[13, 19])
    for mode in ("nearest", "linear"):
        for scales in ((1, 1, 2, 2), (1, 1, 1.5, 1.6)):
            yield Row("Resize", IMAGE, floats(*scales), mode=mode, opsets=[10])
            yield Row("Upsample", IMAGE, floats(*scales), mode=mode, opsets=[9])
            yield Row("Upsample", IMAGE, scales=list(map(float, scales)), mode=mode, opsets=[7])


GRID = (
    *_windows(),
    *_normalisations(),
    *_elementwise(),
    *_pairs(),
    *_reductions(),
    *_shapes(),
    *_resizes(),
)
