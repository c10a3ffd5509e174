"""`resdeploy.predict`: the likeliest classes of images, by the model of a bundle."""

from pathlib import Path

from resdeploy.api.arguments import Inputs, PathLike, Providers, path_of, session_of
from resdeploy.api.bundle import Bundle
from resdeploy.api.sources import as_bundle, form_of
from resdeploy.schema.bundles import PredictReport
from resdeploy.schema.sessions import SessionSpec

__all__ = ["predict"]


def predict(
    bundle: PathLike, inputs: Inputs, *, top: int = 5, provider: Providers | None = None
) -> PredictReport:
    """Name the likeliest classes of every input. Needs no torch.

    Every byte of the bundle is checked first; to ask more than once, open it with `load`.

    Args:
        bundle: a folder, or a `.zip`; or an ONNX file, with what its metadata says.
        inputs: images, files or folders of them, `.npy` and `.npz` files, arrays: uint8 images,
            float32 network inputs (N, ...), or one of them; or several of these.
        top: number of classes to name.
        provider: where to run; None for the settings that `tune` found for this machine.

    Returns:
        The record; `.predictions` has the classes of each input, the likeliest first.

    Raises:
        ResdeployError: the bundle or an input is not what it should be.
        EnvironmentLacksError: the provider did not start.

    Example:
        >>> report = resdeploy.predict("parts.zip", ["a.png", "b.png"])
        >>> [p.classes[0].label for p in report.predictions]
        ['cat', 'ship']
    """
    path = path_of(bundle, "bundle")
    if form_of(path) == "onnx":
        return _of_file(path, inputs, top, session_of("cpu" if provider is None else provider))
    with as_bundle(path) as folder, Bundle(folder, provider=provider) as opened:
        return opened.predict(inputs, top=top)


def _of_file(path: Path, inputs: Inputs, top: int, spec: SessionSpec) -> PredictReport:
    """Return the predictions of an ONNX file, with what its metadata says."""
    from resdeploy.bundle.evaluate import require_class_scores, stated_records
    from resdeploy.bundle.predict import ModelCard, predict_classes
    from resdeploy.files import sha256_file
    from resdeploy.session.session import open_session

    session = open_session(path, spec)
    require_class_scores(session, where=str(path))
    preprocess, labels = stated_records(session, where=str(path))
    card = ModelCard(name=path.stem, digest=sha256_file(path), labels=labels, preprocess=preprocess)
    return predict_classes(card, path.name, session, inputs, num_classes=top)
