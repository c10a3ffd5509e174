"""`resdeploy.predict`: the classes of images, or the outputs for them, by the model of a bundle."""

from pathlib import Path

from resdeploy.api.arguments import Inputs, PathLike, Providers, optional_path, path_of, session_of
from resdeploy.api.bundle import Bundle
from resdeploy.api.sources import as_bundle, form_of
from resdeploy.files import refuse_output
from resdeploy.schema.bundles import PredictReport
from resdeploy.schema.sessions import SessionSpec

__all__ = ["predict"]


def predict(
    bundle: PathLike,
    inputs: Inputs,
    *,
    top: int = 5,
    provider: Providers | None = None,
    out: PathLike | None = None,
    force: bool = False,
) -> PredictReport:
    """Name the likeliest classes of every input, or write the outputs for it. Needs no torch.

    Every byte of the bundle is checked first; to ask more than once, open it with `load`.

    Args:
        bundle: a folder, or a `.zip`; or an ONNX file, with what its metadata says.
        inputs: images, files or folders of them, `.npy` and `.npz` files, arrays: uint8 images,
            float32 network inputs (N, ...), or one of them; or several of these. Of a model of
            several inputs an `.npz` with an array for each, by its name, or a dict of arrays.
        top: number of classes to name.
        provider: where to run; None for the settings that `tune` found for this machine.
        out: write the outputs themselves, by name, to this `.npz` in place of classes; for models
            whose outputs are no class scores.
        force: replace an existing file.

    Returns:
        The record; `.predictions` has the classes of each input, the likeliest first, or with `out`
        the inputs alone, in the order of the rows.

    Raises:
        ResdeployError: the bundle or an input is not what it should be, the outputs are no class
            scores and there is no `out`, or `out` exists.
        EnvironmentLacksError: the provider did not start.

    Example:
        >>> report = resdeploy.predict("parts.zip", ["a.png", "b.png"])
        >>> [p.classes[0].label for p in report.predictions]
        ['cat', 'ship']
    """
    path, written = path_of(bundle, "bundle"), optional_path(out, "out")
    if written is not None:
        refuse_output(written, force=force)
    if form_of(path) == "onnx":
        spec = session_of("cpu" if provider is None else provider)
        return _of_file(path, inputs, spec, top=top, out=written, force=force)
    with as_bundle(path) as folder, Bundle(folder, provider=provider) as opened:
        return opened.predict(inputs, top=top, out=written, force=force)


def _of_file(
    path: Path, inputs: Inputs, spec: SessionSpec, *, top: int, out: Path | None, force: bool
) -> PredictReport:
    """Return the predictions of an ONNX file, with what its metadata says."""
    from resdeploy.bundle.evaluate import stated_records
    from resdeploy.bundle.predict import ModelCard, predict_with
    from resdeploy.files import sha256_file
    from resdeploy.session.session import open_session

    session = open_session(path, spec)
    preprocess, labels = stated_records(session, where=str(path))
    card = ModelCard(name=path.stem, digest=sha256_file(path), labels=labels, preprocess=preprocess)
    return predict_with(card, path.name, session, inputs, top=top, out=out, force=force)
