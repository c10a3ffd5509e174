"""Fold a checkpoint: weights in, folded weights out, judged before they are written."""

import dataclasses
from pathlib import Path

import torch

from resdeploy.errors import ResdeployError
from resdeploy.evidence.end_to_end import judge_end_to_end
from resdeploy.files import atomic_write
from resdeploy.host.build import SourceModel, example_inputs
from resdeploy.host.checkpoint import save_checkpoint
from resdeploy.host.fold import FoldedModel, fold_batchnorm
from resdeploy.host.golden import golden_for, run_module
from resdeploy.schema.folds import FoldReport

__all__ = ["fold_checkpoint"]

_NUM_VERIFY_INPUTS = 4


def fold_checkpoint(
    source: SourceModel, out: Path | None, *, layernorm: bool = False, force: bool = False
) -> FoldReport:
    """Fold a trained model and write it as a resdeploy checkpoint; with `out` None, only report.

    The checkpoint is written only if the folded model passes the comparison in the report. It
    names the network and what was folded, so every command takes it as it takes the original.
    With `layernorm`, the affine parts of LayerNorms are folded too.

    Raises:
        ResdeployError: `out` exists or cannot be written, or the module is not one of resdeploy's
            networks, which alone can be built again from a checkpoint.
        UnsupportedModelError: the module cannot be traced, or calls a layer more than once.
    """
    if out is None:
        return _fold(source, layernorm=layernorm)[1]
    if source.info is None:
        raise ResdeployError(
            "A folded checkpoint of a module of your own could not be loaded again.",
            where=source.description,
            fix="export it to ONNX instead, or look only, with --dry-run",
        )
    with atomic_write(out, force=force) as temporary:
        folded, report = _fold(source, layernorm=layernorm)
        if report.comparison is None or not report.comparison.passed:
            raise ResdeployError(
                "The folded model does not compute what the model computes; nothing was written.",
                where=source.description,
                fix="report this: it is a bug in resdeploy",
            )
        info = dataclasses.replace(source.info, folded=(*source.info.folded, *report.folded))
        save_checkpoint(temporary, folded.state_dict(), info)
    return report


def _fold(source: SourceModel, *, layernorm: bool) -> tuple[FoldedModel, FoldReport]:
    folded = fold_batchnorm(source.module, example_inputs(source), layernorm=layernorm)
    golden = golden_for(source, num_inputs=_NUM_VERIFY_INPUTS, in_detail=False)
    outputs_NK = run_module(folded.module, golden.inputs, dtype=torch.float32)
    comparison = judge_end_to_end(outputs_NK, golden)
    return folded, dataclasses.replace(folded.report, comparison=comparison)
