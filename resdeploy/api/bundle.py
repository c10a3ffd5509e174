"""`resdeploy.bundle`: a trained model packed for a device; and `Bundle`, one that is open."""

import contextlib
import functools
import importlib.metadata
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resdeploy import __version__
from resdeploy.api.arguments import (
    Data,
    Inputs,
    InputShape,
    Layout,
    OnStage,
    PathLike,
    Providers,
    Source,
    export_spec,
    is_onnx,
    model_of,
    optional_data,
    optional_path,
    path_of,
    session_of,
    silent,
    source_spec,
)
from resdeploy.errors import ResdeployError
from resdeploy.schema.bundles import Manifest, Prediction, PredictReport
from resdeploy.schema.exports import ExportReport, ExportSpec
from resdeploy.schema.recipes import DataSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.api.bundle_onnx import Parts
    from resdeploy.export.source import SourceModel
    from resdeploy.verify.certify import Reference
    from resdeploy.verify.golden_file import Golden

__all__ = ["Bundle", "bundle", "pack_bundle"]


def bundle(
    source: "Source",
    out: PathLike,
    *,
    input_shape: InputShape | None = None,
    name: str | None = None,
    data: Data | None = None,
    num_inputs: int | None = 32,
    reference: "Source | None" = None,
    opset: int | None = None,
    target: PathLike | None = None,
    batch: int | Literal["dynamic"] = "dynamic",
    dynamic: Sequence[str] = (),
    embed_preprocess: bool = False,
    layout: Layout = "NCHW",
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    triton: PathLike | None = None,
    onnx_test_data: PathLike | None = None,
    ort_format: PathLike | None = None,
    force: bool = False,
    on_stage: OnStage = silent,
) -> Manifest:
    """Pack a model: ONNX file, labels, preprocessing, golden inputs and outputs.

    An ONNX file is packed as it is, weights as constants, and needs no torch.

    Args:
        source: a `Model`, a torch module in eval mode, or the path of a checkpoint or an ONNX file.
        out: the folder to write, or one file, `NAME.zip`.
        input_shape: of one sample, without the batch; a module needs it.
        name: the model's name; by default that of `out`.
        data: take golden inputs from this data set; by default they are seeded.
        num_inputs: number of golden inputs.
        reference: of an ONNX file, the trained model or the ONNX file that it is held to; None for
            itself, computed in float64.
        opset: as of `export`.
        target: as of `export`.
        batch: as of `export`.
        dynamic: as of `export`.
        embed_preprocess: as of `export`.
        layout: as of `export`.
        input_names: as of `export`.
        output_names: as of `export`.
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
    export = export_spec(
        batch=batch,
        fold=True,
        opset=opset,
        target=target,
        input_names=input_names,
        output_names=output_names,
    )
    given = source_spec(source, input_shape)
    is_file = given is not None and is_onnx(given)
    if is_file and (embed_preprocess or layout != "NCHW" or dynamic or export != ExportSpec()):
        raise ResdeployError(
            "An ONNX file is packed as it is: opset, batch, target and preprocessing are its own.",
            where=str(given.path) if given else None,
            fix="write it in another form first, with resdeploy export",
        )
    if reference is not None and not is_file:
        raise ResdeployError("A trained model is its own reference.")
    from resdeploy.bundle.archive import is_archive
    from resdeploy.bundle.layouts import write_onnx_test_data, write_ort_format, write_triton

    on_stage("golden reference")
    name = name or (path.stem if is_archive(path) else path.absolute().name)
    with tempfile.TemporaryDirectory() as workplace:
        model = Path(workplace) / "model.onnx"
        if given is not None and is_file:
            from resdeploy.api.bundle_onnx import onnx_parts

            parts = onnx_parts(
                given, model, reference=reference, data=chosen, num_inputs=num_inputs
            )
        else:
            trained = model_of(
                source,
                input_shape=input_shape,
                embed_preprocess=embed_preprocess,
                layout=layout,
                dynamic=dynamic,
            )
            parts = _exported(trained, export, model, chosen, num_inputs, on_stage)
        on_stage("pack")
        manifest = _pack(parts, model, path, name=name, force=force)
        tensors = {"inputs": parts.inputs, "outputs": parts.outputs}
        if repository is not None:
            labels = parts.labels
            write_triton(repository, name=name, model=model, labels=labels, force=force, **tensors)
        if test_data is not None:
            golden = parts.golden
            write_onnx_test_data(test_data, model=model, golden=golden, force=force, **tensors)
        if ort_folder is not None:
            write_ort_format(ort_folder, model=model, golden=parts.golden, force=force)
    return manifest


def _exported(
    trained: "SourceModel",
    spec: ExportSpec,
    model: Path,
    data: DataSpec | None,
    num_inputs: int | None,
    on_stage: OnStage,
) -> "Parts":
    """Export a trained model to `model`, and return the parts of its bundle."""
    from resdeploy.export.export import export_onnx
    from resdeploy.export.golden import golden_for
    from resdeploy.export.reference import reference_or_reason

    fixed = None if spec.batch == "dynamic" else spec.batch
    golden = golden_for(trained, data=data, num_inputs=num_inputs, batch=fixed)
    report = export_onnx(trained, spec, model, golden=golden, on_stage=on_stage)
    if not model.is_file():
        raise ResdeployError(
            "The exported model does not compute what the source computes.",
            where=trained.description,
            fix="run resdeploy export on it, which shows the verdict",
        )
    return _parts(trained, report, golden, reference_or_reason(trained, golden, batch=fixed))


def _parts(
    source: "SourceModel", report: ExportReport, golden: "Golden", reference: "Reference | str"
) -> "Parts":
    """Return the parts of a bundle of a model that was exported."""
    from resdeploy.api.bundle_onnx import Parts

    return Parts(
        golden=golden,
        reference=reference,
        inputs=report.inputs,
        outputs=report.outputs,
        labels=source.labels,
        preprocess=source.preprocess,
        export=report,
        where=source.description,
    )


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
    return _pack(_parts(source, report, golden, reference), model, out, name=name, force=force)


def _pack(parts: "Parts", model: Path, out: Path, *, name: str, force: bool) -> Manifest:
    """Write a bundle; one file if `out` is a `.zip`."""
    from resdeploy.bundle.archive import is_archive, write_archive
    from resdeploy.bundle.folder import write_bundle
    from resdeploy.verify.verdict import prove_file

    write = functools.partial(
        write_bundle,
        name=name,
        model=model,
        golden=parts.golden,
        labels=parts.labels,
        preprocess=parts.preprocess,
        export=parts.export,
        inputs=parts.inputs,
        outputs=parts.outputs,
        versions=_versions(parts.export),
        proof=prove_file(model, parts.reference, parts.golden),
        is_own_reference=parts.is_own_reference,
    )
    if not is_archive(out):
        return write(out, force=force)
    with tempfile.TemporaryDirectory() as workplace:
        folder = Path(workplace) / "bundle"
        manifest = write(folder)
        write_archive(folder, out, force=force)
    return manifest


def _versions(export: ExportReport | None) -> Mapping[str, str]:
    """Return the versions of what took part."""
    if export is not None:
        return export.versions
    names = ("onnx", "onnx-ir", "numpy")
    return {"resdeploy": __version__} | {name: importlib.metadata.version(name) for name in names}


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
        """
        from resdeploy.bundle.archive import opened_bundle
        from resdeploy.bundle.tuned_settings import fastest_way
        from resdeploy.session.session import open_session

        spec = None if provider is None else session_of(provider)
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(opened_bundle(path_of(path, "path")))
            model, session = (self._folder.model, spec) if spec else fastest_way(self._folder)
            self._model = Path(model).name
            self._session = open_session(model, session)
            # Also at the end of the program, so that nothing unpacked is left behind.
            self._close = weakref.finalize(self, stack.pop_all().close)
        self.name: str = self._folder.manifest.name
        self.manifest: Manifest = self._folder.manifest
        self.labels: tuple[str, ...] = self._folder.labels

    def __call__(self, sample: Inputs, *, top: int = 5) -> Prediction:
        """Name the likeliest classes of one sample: an image, its file, or an array.

        Raises:
            ResdeployError: it is several samples, or does not fit the model, or the outputs are no
                class scores.
        """
        found = self.predict(sample, top=top).predictions
        if len(found) != 1:
            raise ResdeployError(
                f"A bundle is called with one sample; these are {len(found)}.",
                fix="call .predict, which takes any number",
            )
        return found[0]

    def predict(
        self, inputs: Inputs, *, top: int = 5, out: PathLike | None = None, force: bool = False
    ) -> PredictReport:
        """Name the `top` likeliest classes of each input, as `resdeploy.predict` does.

        With `out`, the outputs are written there instead, as by `resdeploy.predict`.

        Raises:
            ResdeployError: an input does not fit the model, its outputs are no class scores and
                there is no `out`, `out` exists, or the bundle was closed.
        """
        from resdeploy.bundle.predict import card_of, predict_with

        self._refuse_closed()
        card, written = card_of(self._folder), optional_path(out, "out")
        return predict_with(
            card, self._model, self._session, inputs, top=top, out=written, force=force
        )

    def outputs(self, inputs: Inputs) -> "dict[str, NDArray[Any]]":
        """Return the model's outputs for N inputs by name, each (N, ...), whatever they are.

        Raises:
            ResdeployError: an input does not fit the model, or the bundle was closed.
        """
        from resdeploy.bundle.predict import card_of, predict_outputs

        self._refuse_closed()
        _, outputs = predict_outputs(self._session, inputs, card_of(self._folder).preprocess)
        return outputs

    def _refuse_closed(self) -> None:
        if not self._close.alive:
            raise ResdeployError("The bundle was closed.", where=self.name, fix="open it again")

    def close(self) -> None:
        """Close the session, and delete unpacked files."""
        self._close()

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, {len(self.labels)} classes)"
