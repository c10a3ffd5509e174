"""Fold a checkpoint: weights in, folded weights out, judged before they are written."""

import dataclasses
from pathlib import Path

from resdeploy.errors import ResdeployError
from resdeploy.export.fold_module import FoldedModule, fold_batchnorm
from resdeploy.export.source import SourceModel, example_inputs
from resdeploy.files import atomic_write
from resdeploy.schema.folds import FoldReport
from resdeploy.training.checkpoint import save_checkpoint

__all__ = ["fold_checkpoint"]


def fold_checkpoint(
    source: SourceModel, out: Path | None, *, layernorm: bool = False, force: bool = False
) -> FoldReport:
    """Fold a trained model and write it as a resdeploy checkpoint; with `out` None, only report.

    The folded model has passed the comparison in the report. The checkpoint
    names the network and what was folded, so every command takes it as it takes the original.
    With `layernorm`, the affine parts of LayerNorms are folded too.

    Raises:
        ResdeployError: `out` exists or cannot be written, or the module is not one of resdeploy's
            networks, which alone can be built again from a checkpoint.
        UnsupportedModelError: the module cannot be traced, or cannot hold its fold (`fold_module`).
    """
    if out is None:
        return _fold(source, layernorm=layernorm).report
    if source.info is None:
        raise ResdeployError(
            "A folded checkpoint of a module of your own could not be loaded again.",
            where=source.description,
            fix="export it to ONNX instead, or look only, with --dry-run",
        )
    with atomic_write(out, force=force) as temporary:
        folded = _fold(source, layernorm=layernorm)
        folds = (*source.info.folded, *folded.report.folded)
        info = dataclasses.replace(source.info, folded=folds)
        save_checkpoint(temporary, folded.module.state_dict(), info)
    return folded.report


def _fold(source: SourceModel, *, layernorm: bool) -> FoldedModule:
    folded = fold_batchnorm(source.module, example_inputs(source), layernorm=layernorm)
    report = dataclasses.replace(folded.report, source=source.notes)
    return dataclasses.replace(folded, report=report)
