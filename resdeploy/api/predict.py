"""`resdeploy.predict`: the likeliest classes of images, by the model of a bundle."""

from resdeploy.api.arguments import Inputs, PathLike, Providers
from resdeploy.api.bundle import Bundle
from resdeploy.schema.bundles import PredictReport

__all__ = ["predict"]


def predict(
    bundle: PathLike, inputs: Inputs, *, top: int = 5, provider: Providers | None = None
) -> PredictReport:
    """Name the likeliest classes of every input. Needs no torch.

    Every byte of the bundle is checked first; to ask more than once, open it with `load`.

    Args:
        bundle: a folder, or a `.zip`.
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
    with Bundle(bundle, provider=provider) as opened:
        return opened.predict(inputs, top=top)
