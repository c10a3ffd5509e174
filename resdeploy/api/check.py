"""`resdeploy.check`: a bundle verified again, on the device."""

from resdeploy.api.arguments import PathLike, Providers, one_of, path_of, sessions_of
from resdeploy.api.sources import as_bundle
from resdeploy.schema.bundles import CheckReport
from resdeploy.schema.verdicts import Accepts

__all__ = ["check"]


def check(
    bundle: PathLike,
    *,
    provider: Providers = "cpu",
    accept: Accepts = "proof",
    digest: str | None = None,
) -> CheckReport:
    """Verify a bundle on this machine: every byte, then the numbers. Needs no torch.

    Nothing is run if a single byte changed. Settings that `tune` found for such a machine are
    checked too.

    Args:
        bundle: a folder, or a `.zip`; or an ONNX file, judged by its own graph in float64.
        provider: where to run: names, or `SessionSpec`s.
        accept: "outputs" lets a bundle pass whose file was not proved where it was made.
        digest: the bundle's, as you received it by another way: a manifest is not signed.

    Returns:
        The record; `.passed` is the verdict.

    Raises:
        BundleError: it is damaged, or is no bundle.
        EnvironmentLacksError: a provider did not start, or there is no room to unpack an archive.

    Example:
        >>> resdeploy.check("parts.zip", provider="cuda").passed
        True
    """
    path, sessions = path_of(bundle, "bundle"), sessions_of(provider)
    one_of(accept, "accept", ("proof", "outputs"))
    from resdeploy.bundle.check import check_bundle

    with as_bundle(path) as folder_or_archive:
        return check_bundle(folder_or_archive, sessions, accepts=accept, digest=digest)
