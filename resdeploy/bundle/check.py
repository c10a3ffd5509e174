"""Check of a bundle on this machine: every byte, the numbers, and the tuned settings."""

from collections.abc import Sequence
from pathlib import Path

from resdeploy.bundle.archive import opened_bundle
from resdeploy.bundle.check_tuned import check_tuned
from resdeploy.schema.bundles import CheckReport
from resdeploy.schema.sessions import SessionSpec
from resdeploy.verify.outputs import judge_outputs

__all__ = ["check_bundle"]


def check_bundle(path: Path, specs: Sequence[SessionSpec]) -> CheckReport:
    """Return the verdict on a bundle for each session of `specs`, and for settings tuned here.

    Nothing runs if a file changed.

    Raises:
        BundleError: this is not a bundle, folder or archive, or is not as it was written.
        EnvironmentLacksError: a provider did not start, or there is no room to unpack an archive.
    """
    with opened_bundle(path) as bundle:
        return CheckReport(
            name=bundle.manifest.name,
            num_files=len(bundle.manifest.files),
            verification=judge_outputs(bundle.model, bundle.golden, specs),
            tuned=check_tuned(bundle),
        )
