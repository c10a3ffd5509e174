"""Check a bundle on this machine: every byte first, then the numbers."""

from collections.abc import Sequence
from pathlib import Path

from resdeploy.bundle import read_bundle
from resdeploy.schema import CheckReport, SessionSpec
from resdeploy.target.verify import verify_model

__all__ = ["check_bundle"]


def check_bundle(path: Path, specs: Sequence[SessionSpec]) -> CheckReport:
    """Return the verdict on a bundle for each session of `specs`; nothing runs if a file changed.

    Raises:
        BundleError: the folder is not a bundle, or is not as it was written.
        ProviderError: a provider did not start.
    """
    bundle = read_bundle(path)
    return CheckReport(
        name=bundle.manifest.name,
        num_files=len(bundle.manifest.files),
        verification=verify_model(bundle.model, bundle.golden, specs),
    )
