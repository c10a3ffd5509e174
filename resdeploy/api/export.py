"""`resdeploy.export`: a trained model folded, checked, and written as ONNX."""

from collections.abc import Sequence
from typing import Literal

from resdeploy.api.arguments import (
    InputShape,
    Layout,
    OnStage,
    PathLike,
    Source,
    export_spec,
    model_of,
    path_of,
    silent,
)
from resdeploy.schema.exports import ExportReport

__all__ = ["export"]


def export(
    source: "Source",
    out: PathLike,
    *,
    input_shape: InputShape | None = None,
    opset: int | None = None,
    batch: int | Literal["dynamic"] = "dynamic",
    fold: bool = True,
    target: PathLike | None = None,
    dynamic: Sequence[str] = (),
    embed_preprocess: bool = False,
    layout: Layout = "NCHW",
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    force: bool = False,
    on_stage: OnStage = silent,
) -> ExportReport:
    """Fold a trained model and write it as one ONNX file, if the file computes the same.

    Args:
        source: a `Model`, a torch module in eval mode, or a checkpoint's path.
        out: the file to write.
        input_shape: of one sample, without the batch; a module needs it.
        opset: the ONNX operator set; None for 18, or what the target reads.
        batch: "dynamic", or a fixed number of samples.
        dynamic: sides of images to leave open too, of "height" and "width".
        fold: fold every BatchNorm that may be folded.
        target: the record that `resdeploy probe -o` wrote on the target; or the name of a board,
            such as "rknn", or of a runtime, as in "onnxruntime-1.18".
        embed_preprocess: make the preprocessing part of the model, which then takes pixels,
            uint8 (N, H, W, C).
        layout: the axes of the file's images, float32: "NCHW" or "NHWC".
        input_names: of the file, in its order; () for "input".
        output_names: of the file, in its order; () for "logits".
        force: replace an existing file.
        on_stage: called with the name of each stage as it begins.

    Returns:
        The record; where `.verification.passed` is False, nothing was written. That check
        compares outputs on a few inputs: the whole proof is `verify`.

    Raises:
        ResdeployError: the request is wrong, or `out` exists or cannot be written.
        UnsupportedModelError: the model cannot be traced or translated.

    Example:
        >>> report = resdeploy.export(model, "resnet50.onnx", batch=1)
        >>> [site.reason for site in report.fold.refused]
        []
    """
    path = path_of(out, "out")
    spec = export_spec(
        batch=batch,
        fold=fold,
        opset=opset,
        target=target,
        input_names=input_names,
        output_names=output_names,
    )
    from resdeploy.export.export import export_onnx

    on_stage("load")
    model = model_of(
        source,
        input_shape=input_shape,
        embed_preprocess=embed_preprocess,
        layout=layout,
        dynamic=dynamic,
    )
    return export_onnx(model, spec, path, force=force, on_stage=on_stage)
