"""Export a trained model to ONNX: trace, translate, simplify, fold, verify, write.

The BatchNorms are folded by `fold.fold_batchnorm`, and by nothing else: the optimisers of torch's
exporter and of onnxsim are told not to, as they fold in float32, or wrongly, and without a report.
"""

import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import DeduplicateInitializersPass

from resdeploy import __version__
from resdeploy.data.named_inputs import by_name, values_per_sample
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export.embedded import split_preprocess
from resdeploy.export.golden import golden_for
from resdeploy.export.signature import bind
from resdeploy.export.source import (
    SourceModel,
    example_samples,
    of_another_size,
    stated_metadata,
)
from resdeploy.export.trace import BATCH_DIMENSION, output_names, trace
from resdeploy.export.translate import translate
from resdeploy.files import atomic_write
from resdeploy.fold.pipeline import optimize
from resdeploy.graph.drop_unused import drop_unused
from resdeploy.graph.float64 import evaluate_float64
from resdeploy.graph.float64_corners import CornerError
from resdeploy.graph.lower_opset import OLDEST_OPSET
from resdeploy.graph.name_io import rename_io
from resdeploy.machine.boards import Board, find_board
from resdeploy.schema.exports import ExportReport, ExportSpec
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import VerifyReport
from resdeploy.verify.certify import refuse_difference
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.outputs import judge_outputs

__all__ = ["export_onnx", "stage_versions"]

# The export's own check is to cost little; the full verdict is the verify command's. About two
# images of ImageNet's size, or 32 small ones: the fewer outputs, the more inputs to average over.
_VERIFY_ELEMENTS = 2 * 3 * 224 * 224
_MOST_VERIFY_INPUTS = 32

Progress = Callable[[str], None]


def export_onnx(
    source: SourceModel,
    spec: ExportSpec,
    out: Path,
    *,
    force: bool = False,
    golden: Golden | None = None,
    on_stage: Progress = lambda stage: None,
) -> ExportReport:
    """Write `source` as one self-contained ONNX file and return what was done to it.

    The file appears at `out` only if it computes what the source computes: a candidate that fails
    verification is not written, and the report says so (`.verification.passed` is False).

    Args:
        source: the trained model.
        spec: opset, batch and whether to fold.
        out: the file to write.
        force: replace an existing file.
        golden: what to verify against; by default a few seeded inputs.
        on_stage: told the name of each stage as it begins.

    Raises:
        ResdeployError: the request is wrong, or `out` cannot be written.
        UnsupportedModelError: the model cannot be traced or translated, or its outputs differ in a
            corner of an operator that runtimes read in two ways.
    """
    _check_opset(spec.opset)
    try:
        with atomic_write(out, force=force) as temporary:
            return _export(source, spec, temporary, golden=golden, on_stage=on_stage)
    except _NotEquivalentError as rejected:
        return rejected.report


def stage_versions() -> dict[str, str]:
    """Return the versions of what took part in an export."""
    names = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "numpy")
    # resdeploy by its own word: run from a checkout, it is not an installed distribution.
    return {"resdeploy": __version__} | {name: importlib.metadata.version(name) for name in names}


class _NotEquivalentError(Exception):
    """Carries the report out of `atomic_write`, so that the file is dropped."""

    def __init__(self, report: ExportReport) -> None:
        super().__init__("the exported file does not compute what the source computes")
        self.report = report


def _export(
    source: SourceModel,
    spec: ExportSpec,
    file: Path,
    *,
    golden: Golden | None,
    on_stage: Progress,
) -> ExportReport:
    """Do the work of `export_onnx` on a file that will be dropped if this raises."""
    report_with = _write(source, spec, file, on_stage)
    on_stage("verify")
    verification = _verified(source, file, golden, batch=_fixed(spec))
    report = report_with(file=verification.model, verification=verification)
    if not verification.passed:
        raise _NotEquivalentError(report)
    return report


def _fixed(spec: ExportSpec) -> int | None:
    return None if spec.batch == "dynamic" else spec.batch


def _verified(
    source: SourceModel, file: Path, golden: Golden | None, *, batch: int | None
) -> VerifyReport:
    """Return the verdict on the file's outputs.

    The noise of one order of summation costs two runs and passes most files. Where it does not, as
    for averages of large maps, the graph is asked what any order explains.
    """
    # A busy machine has no cores for threads that wait awake.
    specs = [SessionSpec(provider="cpu", spinning=False)]
    if golden is not None:
        return judge_outputs(file, golden, specs)
    verification = None
    for size in (source, of_another_size(source)) if source.open_sides else (source,):
        for in_detail in (False, True):
            with _one_thread():
                own = golden_for(
                    size,
                    num_inputs=_num_verify_inputs(size),
                    in_detail=in_detail,
                    batch=batch,
                )
            here = judge_outputs(file, own, specs)
            if here.passed:
                break
        if verification is None or not here.passed:
            verification = here
        if not here.passed:
            _refuse_corner(file, own)
            break
    assert verification is not None
    return verification


def _refuse_corner(file: Path, golden: Golden) -> None:
    """Raise CornerError if the outputs differ where runtimes do not agree on an operator."""
    model = onnx.load(file)
    count = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    samples = np.resize(golden.inputs, (count, *golden.inputs.shape[1:]))
    try:
        evaluate_float64(model, by_name(samples, [value.name for value in model.graph.input]))
    except CornerError as error:
        raise CornerError(
            error.what,
            where=error.where,
            fix="write that step in another way; for nearest, resize by a whole factor",
        ) from error
    except UnsupportedModelError:
        return  # it is not known what the operators compute: the outputs alone are judged


def _write(
    source: SourceModel, spec: ExportSpec, file: Path, on_stage: Progress
) -> Callable[..., ExportReport]:
    """Write the file, and return its report but for the verdict; the graphs are freed before it."""
    is_dynamic = spec.batch == "dynamic"
    on_stage("trace")
    network, preprocess = split_preprocess(source.module)
    samples = example_samples(source, batch_size=2 if spec.batch == "dynamic" else spec.batch)
    args, kwargs = bind(network, samples, torch.float32)
    program = trace(
        network,
        args,
        by_name=kwargs,
        dynamic_batch=is_dynamic,
        open_sides=source.open_sides,
    )
    names = output_names(program)
    on_stage("translate")
    optimized = optimize(
        translate(program, opset=spec.opset),
        opset=spec.opset,
        batch_dimension=BATCH_DIMENSION if is_dynamic else None,
        fold=spec.fold,
        embed=preprocess,
        open_sides=source.open_sides,
        input_names=source.input_names,
        output_names=names,
        on_stage=on_stage,
    )
    model = optimized.model
    if spec.newest_ir_version is not None:
        # Of an older form, the file says the same: what the newer ones added is not used here.
        model.ir_version = min(model.ir_version, spec.newest_ir_version)
    _describe(model, source)
    rename_io(model, spec.input_names, spec.output_names)
    if spec.board is not None:
        _refuse_lacking(model, find_board(spec.board))
    # Parameters that modules share became a tensor for each fold.
    DeduplicateInitializersPass(size_limit=sys.maxsize)(model)
    written = ir.to_proto(model)
    drop_unused(written)
    if optimized.before_lowering is not None:
        refuse_difference(written, optimized.before_lowering, spec.opset)
    # Not onnx.checker: the session of the verification refuses all that it would, and more.
    file.write_bytes(written.SerializeToString(deterministic=True))
    return functools.partial(
        ExportReport,
        spec=spec,
        fold=optimized.fold if spec.fold else None,
        passes=optimized.passes,
        inputs=tuple(map(_tensor_spec, model.graph.inputs)),
        outputs=tuple(map(_tensor_spec, model.graph.outputs)),
        num_nodes=model.graph.num_nodes(),
        versions=stage_versions(),
        source=source.notes,
    )


def _refuse_lacking(model: ir.Model, board: Board) -> None:
    for node in model.graph.all_nodes():
        if node.op_type in board.lacks:
            raise UnsupportedModelError(
                f"{board.title} has no {node.op_type}.",
                where=f"node {node.name!r}",
                fix="replace it in the network; " + board.sources[-1],
            )


def _check_opset(opset: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ResdeployError(
            f"Opset {opset} is not supported.",
            fix=f"choose one from {OLDEST_OPSET} to {newest}",
        )


def _describe(model: ir.Model, source: SourceModel) -> None:
    """Write labels and preprocessing into the file, as JSON, for whoever has nothing else."""
    model.graph.name = "resdeploy"
    model.metadata_props["resdeploy.source"] = source.description
    model.metadata_props.update(stated_metadata(source))


def _num_verify_inputs(source: SourceModel) -> int:
    num_values = values_per_sample(example_samples(source, batch_size=1))
    return max(2, min(_MOST_VERIFY_INPUTS, _VERIFY_ELEMENTS // num_values))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: on a few inputs, its threads mostly wait for each other, awake."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    dimensions = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(name=value.name, dtype=str(value.dtype).lower(), shape=dimensions)
