"""Another ONNX file as the reference: evaluated in float64, without torch.

The yardstick of float32's noise is then the runtime itself, on that file, with every optimisation
off: it errs as PyTorch does (R between 0.9 and 1.1 over 11 networks). Where the two compute an
operator in two ways, their distance would be no noise, and the reference is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from resdeploy.data.input_kinds import KINDS, InputKind
from resdeploy.data.named_inputs import by_name, joined
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.graph.affine_layer import AFFINE_OPERATORS, Array
from resdeploy.graph.float64 import Evaluate, float64_evaluator, to_float64
from resdeploy.graph.onnx_file import OnnxFile, copy_of, fed_inputs, read_onnx
from resdeploy.schema.files import numpy_name
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.session.batches import run_outputs
from resdeploy.verify.certify import JUDGED_METADATA, Reference
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.named_outputs import golden_from_outputs
from resdeploy.verify.reference_agreement import refuse_disagreement

__all__ = ["load_reference"]

_OTHER_FLOATS = ("float16", "float64")


def load_reference(
    path: Path,
    *,
    num_inputs: int,
    open_model: Callable[[bytes], Evaluate],
    input_shape: tuple[int, ...] | None = None,
    given: tuple[Array, str] | None = None,
) -> tuple[Golden, Reference]:
    """Return the outputs of the model in `path`, and its graph.

    Args:
        path: an ONNX file with inputs of known shapes, but for their batch: float32, integers, or
            pixels.
        num_inputs: how many seeded inputs, where none are given.
        open_model: opens a serialised model in the runtime, in float32, without optimisations.
        input_shape: of one sample, for a model that leaves it open.
        given: inputs (N, ...) float32 to take instead, and their description.

    Raises:
        ResdeployError: the file is missing, is no ONNX model or has other inputs.
        UnsupportedModelError: it has operators that cannot be computed in float64, or that the
            runtime computes otherwise.
    """
    file = read_onnx(path)
    model = file.model
    fed = fed_inputs(model)
    wanted = input_shape or (None if given is None else given[0].shape[1:])
    taken = [_input(value, path, wanted if len(fed) == 1 else None) for value in fed]
    names, fixed_batch = [one.name for one in taken], _fixed_batch(taken, path)
    inputs, description = given or _seeded(taken, num_inputs)
    shapes = [array.shape[1:] for array in by_name(inputs[:1], names).values()]
    if shapes != [one.shape for one in taken]:
        raise ResdeployError(
            f"The inputs have shape {_listed(shapes)}; the reference takes "
            f"{_listed([one.shape for one in taken])}.",
            where=description,
        )
    doubled = to_float64(model)
    evaluate = float64_evaluator(doubled)
    runtime = open_model(model.SerializeToString())

    def outputs(run: Evaluate) -> dict[str, Array]:
        return run_outputs(lambda batch: run(by_name(batch, names)), inputs, fixed=fixed_batch)

    golden = golden_from_outputs(
        inputs,
        outputs(evaluate),
        outputs(runtime),
        info=GoldenInfo(
            source=f"{path.name}, in float64{_frozen(file)}",
            inputs=description,
            num_inputs=len(inputs),
        ),
    )
    worst = np.repeat(inputs[[_furthest(golden)]], fixed_batch or 1, axis=0)
    refuse_disagreement(model, doubled, by_name(worst, names), open_model)
    folded = ir.from_proto(doubled)
    report = fold_batchnorm(folded, split_input=True)
    stated = {e.key: e.value for e in model.metadata_props if e.key in JUDGED_METADATA}
    return golden, Reference(
        model=ir.to_proto(folded),
        bias_magnitudes=_bias_magnitudes(doubled, report) if report.folded else {},
        is_exact=False,
        metadata=stated,
    )


def _bias_magnitudes(doubled: onnx.ModelProto, report: FoldReport) -> dict[str, Array]:
    """Return the sum of magnitudes behind each folded bias, by the name of its layer's weight.

    A fold adds up products of the model's numbers, |beta| + |scale mean| + |scale b| for one: it is
    the bias of the same fold where every number has the sign that makes its term positive.
    """
    positive = copy_of(doubled)
    subtracted = {node.input[3] for node in positive.graph.node if _is_norm(node)}
    subtracted |= {name for n in positive.graph.node if n.op_type == "Sub" for name in n.input[1:]}
    for tensor in positive.graph.initializer:
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            sign = -1 if tensor.name in subtracted else 1
            values = sign * np.abs(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    folded = ir.from_proto(positive)
    again = fold_batchnorm(folded, split_input=True)
    places = [[(site.site, site.producer) for site in one.folded] for one in (report, again)]
    if places[0] != places[1]:  # by a sign that decided whether a map crosses a maximum
        return {}
    layers = [node for node in ir.to_proto(folded).graph.node if len(node.input) > 2]
    numbers = {one.name: one for one in ir.to_proto(folded).graph.initializer}
    return {
        node.input[1]: numpy_helper.to_array(numbers[node.input[2]])
        for node in layers
        if node.op_type in AFFINE_OPERATORS and node.input[2] in numbers
    }


def _is_norm(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and len(node.input) > 3


def _frozen(file: OnnxFile) -> str:
    """Return the assumption about the weights, in words."""
    count = len(file.frozen)
    return f" ({count} weights among its inputs taken as constants)" if count else ""


def _furthest(golden: Golden) -> int:
    """Return the input for which the two evaluators are furthest apart, of integers first."""
    if golden.near_ties is not None and len(golden.near_ties):
        return int(golden.near_ties[0, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        distances_N = golden.noise_l2 / np.linalg.norm(golden.finite, axis=1)
    return int(np.argmax(np.nan_to_num(distances_N, posinf=np.inf)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """An input of the reference; `batch` is its batch size if fixed, `shape` of one sample."""

    name: str
    batch: int | None
    shape: tuple[int, ...]
    kind: InputKind
    dtype: str


def _input(value: onnx.ValueInfoProto, path: Path, wanted: tuple[int, ...] | None) -> _Input:
    """Return the description of an input; a size that it leaves open is that of `wanted`."""
    tensor = value.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    if wanted is not None and len(wanted) == len(sizes) - 1:
        sizes[1:] = [size or more for size, more in zip(sizes[1:], wanted, strict=True)]
    shape = tuple(size for size in sizes[1:] if size)
    dtype = numpy_name(onnx.TensorProto.DataType.Name(tensor.elem_type).lower())
    kind = KINDS.get(dtype)
    if not sizes or len(shape) != len(sizes) - 1 or kind is None or dtype in _OTHER_FLOATS:
        raise UnsupportedModelError(
            f"The input {value.name!r} of the reference is not float32, integers or pixels, of a "
            "known shape.",
            where=str(path),
            fix="give the shape of one sample, as in --input 3,224,224; where a command has no "
            "--input, of a bundle made with it: resdeploy bundle MODEL.onnx --input 3,224,224 -o "
            "NAME.zip",
        )
    return _Input(name=value.name, batch=sizes[0], shape=shape, kind=kind, dtype=dtype)


def _fixed_batch(inputs: Sequence[_Input], path: Path) -> int | None:
    sizes = {one.batch for one in inputs if one.batch is not None}
    if not inputs or len(sizes) > 1:
        raise UnsupportedModelError(
            "The reference has no inputs, or inputs of several batch sizes.",
            where=str(path),
            fix="export it with one batch for all inputs",
        )
    return next(iter(sizes), None)


def _seeded(inputs: Sequence[_Input], num: int) -> tuple[Array, str]:
    if len(inputs) == 1:
        return inputs[0].kind.seeded((num, *inputs[0].shape))
    arrays = {one.name: one.kind.draw((num, *one.shape), seed=k) for k, one in enumerate(inputs)}
    return joined(arrays), f"{num} seeded samples of {', '.join(arrays)}"


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))
