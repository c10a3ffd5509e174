"""Make a bundle of a trained model: golden reference, export, verification, packing."""

import functools
import tempfile
from pathlib import Path

from resdeploy.api.arguments import OnStage, silent
from resdeploy.bundle.archive import is_archive, write_archive
from resdeploy.bundle.folder import write_bundle
from resdeploy.bundle.layouts import write_onnx_test_data, write_ort_format, write_triton
from resdeploy.errors import ResdeployError
from resdeploy.export.export import export_onnx, stage_versions
from resdeploy.export.source import SourceModel
from resdeploy.schema.bundles import Manifest
from resdeploy.schema.exports import ExportReport, ExportSpec
from resdeploy.verify.golden_file import Golden

__all__ = ["make_bundle", "pack_bundle"]


def make_bundle(
    source: SourceModel,
    spec: ExportSpec,
    out: Path,
    *,
    golden: Golden,
    name: str,
    triton: Path | None = None,
    onnx_test_data: Path | None = None,
    ort_format: Path | None = None,
    force: bool = False,
    on_stage: OnStage = silent,
) -> Manifest:
    """Export `source`, verify it against `golden` and write both as a bundle.

    `triton`, `onnx_test_data` and `ort_format` are folders for the model in those layouts too.

    Raises:
        ResdeployError: the model does not compute what the source computes, or `out` exists or
            cannot be written.
        UnsupportedModelError: the model cannot be exported.
    """
    with tempfile.TemporaryDirectory() as workplace:
        model = Path(workplace) / "model.onnx"
        report = export_onnx(source, spec, model, golden=golden, on_stage=on_stage)
        if not model.is_file():
            raise ResdeployError(
                "The exported model does not compute what the source computes.",
                where=source.description,
                fix="run resdeploy export on it, which shows the verdict",
            )
        on_stage("pack")
        manifest = pack_bundle(source, report, model, out, golden=golden, name=name, force=force)
        tensors = {"inputs": report.inputs, "outputs": report.outputs}
        if triton is not None:
            labels = source.info.labels if source.info else ()
            write_triton(triton, name=name, model=model, labels=labels, force=force, **tensors)
        if onnx_test_data is not None:
            write_onnx_test_data(onnx_test_data, model=model, golden=golden, force=force, **tensors)
        if ort_format is not None:
            write_ort_format(ort_format, model=model, golden=golden, force=force)
        return manifest


def pack_bundle(
    source: SourceModel,
    report: ExportReport,
    model: Path,
    out: Path,
    *,
    golden: Golden,
    name: str,
    force: bool = False,
) -> Manifest:
    """Write the bundle of a model that was exported already; one file if `out` is a `.zip`.

    Raises:
        ResdeployError: `out` exists or cannot be written.
    """
    write = functools.partial(
        write_bundle,
        name=name,
        model=model,
        golden=golden,
        labels=source.info.labels if source.info else (),
        preprocess=source.preprocess,
        export=report,
        inputs=report.inputs,
        outputs=report.outputs,
        versions=stage_versions(),
    )
    if not is_archive(out):
        return write(out, force=force)
    with tempfile.TemporaryDirectory() as workplace:
        folder = Path(workplace) / "bundle"
        manifest = write(folder)
        write_archive(folder, out, force=force)
    return manifest
