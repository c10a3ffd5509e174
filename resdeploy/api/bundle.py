"""`resdeploy.bundle`: a trained model packed for a device; and `Bundle`, one that is open."""

import contextlib
import functools
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resdeploy.api.arguments import (
    Data,
    Inputs,
    OnStage,
    PathLike,
    Providers,
    Source,
    export_spec,
    model_of,
    optional_data,
    optional_path,
    path_of,
    session_of,
    silent,
)
from resdeploy.errors import ResdeployError
from resdeploy.schema.bundles import Manifest, Prediction, PredictReport
from resdeploy.schema.exports import ExportReport

if TYPE_CHECKING:
    from resdeploy.export.source import SourceModel
    from resdeploy.verify.certify import Reference
    from resdeploy.verify.golden_file import Golden

__all__ = ["Bundle", "bundle", "pack_bundle"]


def bundle(
    source: "Source",
    out: PathLike,
    *,
    input_shape: Sequence[int] | None = None,
    name: str | None = None,
    data: Data | None = None,
    num_inputs: int | None = 32,
    opset: int | None = None,
    target: PathLike | None = None,
    batch: int | Literal["dynamic"] = "dynamic",
    embed_preprocess: bool = False,
    triton: PathLike | None = None,
    onnx_test_data: PathLike | None = None,
    ort_format: PathLike | None = None,
    force: bool = False,
    on_stage: OnStage = silent,
) -> Manifest:
    """Pack a trained model: ONNX file, labels, preprocessing, golden inputs and outputs.

    Args:
        source: a `Model`, a torch module in eval mode, or a checkpoint's path.
        out: the folder to write, or one file, `NAME.zip`.
        input_shape: of one sample, without the batch; a module needs it.
        name: the model's name; by default that of `out`.
        data: take golden inputs from this data set; by default they are seeded.
        num_inputs: number of golden inputs.
        opset: as of `export`.
        target: as of `export`.
        batch: as of `export`.
        embed_preprocess: as of `export`.
        triton: also write it into this model repository of Triton.
        onnx_test_data: also write model and golden inputs as ONNX test data to this folder.
        ort_format: also write model.ort and its list of operators to this folder.
        force: replace an existing bundle.
        on_stage: called with the name of each stage as it begins.

    Returns:
        The bundle's manifest.

    Raises:
        ResdeployError: the model does not compute what `source` computes, `out` exists, or the
            request is wrong.
        UnsupportedModelError: the model cannot be exported.

    Example:
        >>> resdeploy.bundle(model, "parts.zip", data="cifar10:data")
        >>> resdeploy.load("parts.zip")("photo.png").classes[0].label
        'cat'
    """
    path, repository = path_of(out, "out"), optional_path(triton, "triton")
    test_data = optional_path(onnx_test_data, "onnx_test_data")
    ort_folder = optional_path(ort_format, "ort_format")
    chosen = optional_data(data)
    spec = export_spec(batch=batch, fold=True, opset=opset, target=target)
    from resdeploy.bundle.archive import is_archive
    from resdeploy.bundle.layouts import write_onnx_test_data, write_ort_format, write_triton
    from resdeploy.export.export import export_onnx
    from resdeploy.export.golden import golden_for
    from resdeploy.export.reference import reference_or_reason

    on_stage("golden reference")
    trained = model_of(source, input_shape=input_shape, embed_preprocess=embed_preprocess)
    golden = golden_for(trained, data=chosen, num_inputs=num_inputs)
    name = name or (path.stem if is_archive(path) else path.absolute().name)
    with tempfile.TemporaryDirectory() as workplace:
        model = Path(workplace) / "model.onnx"
        report = export_onnx(trained, spec, model, golden=golden, on_stage=on_stage)
        if not model.is_file():
            raise ResdeployError(
                "The exported model does not compute what the source computes.",
                where=trained.description,
                fix="run resdeploy export on it, which shows the verdict",
            )
        on_stage("pack")
        manifest = pack_bundle(
            trained,
            report,
            model,
            path,
            golden=golden,
            reference=reference_or_reason(trained, golden),
            name=name,
            force=force,
        )
        tensors = {"inputs": report.inputs, "outputs": report.outputs}
        if repository is not None:
            write_triton(
                repository, name=name, model=model, labels=trained.labels, force=force, **tensors
            )
        if test_data is not None:
            write_onnx_test_data(test_data, model=model, golden=golden, force=force, **tensors)
        if ort_folder is not None:
            write_ort_format(ort_folder, model=model, golden=golden, force=force)
    return manifest


def pack_bundle(
    source: "SourceModel",
    report: ExportReport,
    model: Path,
    out: Path,
    *,
    golden: "Golden",
    reference: "Reference | str",
    name: str,
    force: bool = False,
) -> Manifest:
    """Write the bundle of a model that was exported already; one file if `out` is a `.zip`.

    `reference` is its graph, or the reason for its absence, which the proof then states.

    Raises:
        ResdeployError: `out` exists or cannot be written.
    """
    from resdeploy.bundle.archive import is_archive, write_archive
    from resdeploy.bundle.folder import write_bundle
    from resdeploy.export.export import stage_versions
    from resdeploy.verify.verdict import prove_file

    write = functools.partial(
        write_bundle,
        name=name,
        model=model,
        golden=golden,
        labels=source.labels,
        preprocess=source.preprocess,
        export=report,
        inputs=report.inputs,
        outputs=report.outputs,
        versions=stage_versions(),
        proof=prove_file(model, reference, golden),
    )
    if not is_archive(out):
        return write(out, force=force)
    with tempfile.TemporaryDirectory() as workplace:
        folder = Path(workplace) / "bundle"
        manifest = write(folder)
        write_archive(folder, out, force=force)
    return manifest


class Bundle:
    """An open bundle: every byte checked, its session kept; a call predicts one sample.

    Attributes:
        name: the model's name.
        manifest: the bundle's table of contents.
        labels: the names of its classes, () where it has none.

    Example:
        >>> with resdeploy.Bundle("parts.zip") as model:
        ...     model("photo.png").classes[0].label
        'cat'
    """

    def __init__(self, path: PathLike, *, provider: Providers | None = None) -> None:
        """Open the bundle at `path`, a folder or a `.zip`.

        It runs on `provider`; with None, by the settings that `tune` found for this machine.

        Raises:
            BundleError: it is damaged, or is no bundle.
            EnvironmentLacksError: the provider did not start.
            ResdeployError: its outputs are no class scores.
        """
        from resdeploy.bundle.archive import opened_bundle
        from resdeploy.bundle.evaluate import require_class_scores
        from resdeploy.bundle.tuned_settings import fastest_way
        from resdeploy.session.session import open_session

        spec = None if provider is None else session_of(provider)
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(opened_bundle(path_of(path, "path")))
            model, session = (self._folder.model, spec) if spec else fastest_way(self._folder)
            self._model = Path(model).name
            self._session = open_session(model, session)
            require_class_scores(self._session, where=self._folder.manifest.name)
            # Also at the end of the program, so that nothing unpacked is left behind.
            self._close = weakref.finalize(self, stack.pop_all().close)
        self.name: str = self._folder.manifest.name
        self.manifest: Manifest = self._folder.manifest
        self.labels: tuple[str, ...] = self._folder.labels

    def __call__(self, sample: Inputs, *, top: int = 5) -> Prediction:
        """Name the likeliest classes of one sample: an image, its file, or an array.

        Raises:
            ResdeployError: it is several samples, or does not fit the model.
        """
        found = self.predict(sample, top=top).predictions
        if len(found) != 1:
            raise ResdeployError(
                f"A bundle is called with one sample; these are {len(found)}.",
                fix="call .predict, which takes any number",
            )
        return found[0]

    def predict(self, inputs: Inputs, *, top: int = 5) -> PredictReport:
        """Name the `top` likeliest classes of each input, as `resdeploy.predict` does.

        Raises:
            ResdeployError: an input does not fit the model, or the bundle was closed.
        """
        if not self._close.alive:
            raise ResdeployError("The bundle was closed.", where=self.name, fix="open it again")
        from resdeploy.bundle.predict import predict_classes

        return predict_classes(self._folder, self._model, self._session, inputs, num_classes=top)

    def close(self) -> None:
        """Close the session, and delete unpacked files."""
        self._close()

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, {len(self.labels)} classes)"
