"""`resdeploy.evaluate`: the accuracy of a model with its interval, alone or against another."""

from typing import TYPE_CHECKING, Any

from resdeploy.api.arguments import (
    Data,
    OnProgress,
    PathLike,
    Providers,
    data_of,
    optional_path,
    path_of,
    session_of,
    silent,
)
from resdeploy.api.sources import refuse_checkpoint
from resdeploy.errors import ResdeployError
from resdeploy.schema.evaluations import EvaluateReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.bundle.evaluate import LoadSamples

__all__ = ["evaluate"]


def evaluate(
    model: PathLike,
    data: "Data | tuple[NDArray[Any], NDArray[Any]]",
    *,
    against: PathLike | None = None,
    max_drop: float | None = None,
    provider: Providers = "cpu",
    on_progress: OnProgress = silent,
) -> EvaluateReport:
    """Measure a model's accuracy on held-out samples, with its interval. Needs no torch.

    Args:
        model: an ONNX file, or a bundle.
        data: labelled samples: a data set such as "cifar10:PATH", an `.npz`, a folder of images;
            or arrays (x, y): raw samples (N, ...) and their classes (N,).
        against: another model on the same samples, compared sample by sample.
        max_drop: the largest drop in accuracy from `against`, as a fraction; the whole interval of
            the drop must be within it.
        provider: where to run both.
        on_progress: called with the samples done, their total, and the model's name.

    Returns:
        The record; `.model.result` has the accuracy and its exact interval, `.paired` the
        comparison, `.passed` the verdict on `max_drop`.

    Raises:
        ResdeployError: a model or the samples are not what they should be.
        EnvironmentLacksError: the provider did not start.

    Example:
        >>> report = resdeploy.evaluate("int8.onnx", "digits", against="m.onnx")
        >>> report.paired.drop_interval
        (-0.004, 0.009)
    """
    path, other = path_of(model, "model"), optional_path(against, "against")
    for one in (path, other):
        if one is not None:
            refuse_checkpoint(one)
    if max_drop is not None and other is None:
        raise ResdeployError(
            "A largest drop needs a model that it is a drop from.", fix="name it with against"
        )
    session, load = session_of(provider), _loader(data)
    from resdeploy.bundle.evaluate import evaluate as evaluate_models

    return evaluate_models(
        path, load, session, against=other, max_drop=max_drop, on_progress=on_progress
    )


def _loader(data: Any) -> "LoadSamples":
    from resdeploy.data.datasets import labelled_arrays, load_labelled

    if isinstance(data, tuple):
        samples = labelled_arrays(*data)
        return lambda preprocess: samples
    chosen = data_of(data)
    return lambda preprocess: load_labelled(chosen, preprocess)
