"""Check of a bundle on this machine: every byte, the numbers, and the settings tuned for it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from resdeploy.bundle.archive import opened_bundle
from resdeploy.bundle.folder import BundleFolder
from resdeploy.bundle.tuned_settings import target_of
from resdeploy.errors import BundleError
from resdeploy.machine.environment import read_environment
from resdeploy.schema.bundles import CheckReport, TunedCheck
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import GoldenAnswers, TunedSettings
from resdeploy.schema.verdicts import Accepts, VerifyReport
from resdeploy.session.run import session_outputs
from resdeploy.session.session import open_session
from resdeploy.verify.compare import level_infinities, predictions
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.named_outputs import exact_columns, float_columns
from resdeploy.verify.outputs import judge_outputs

__all__ = ["check_bundle", "golden_answers", "judge_with_proof"]

# Between runs of the same file, kind of machine and runtime only the order of sums may differ: far
# less than the error of any lower precision.
_CLEARLY_WORSE = 2.0


def check_bundle(
    path: Path,
    specs: Sequence[SessionSpec],
    *,
    accepts: Accepts = "proof",
    digest: str | None = None,
) -> CheckReport:
    """Return the verdict on a bundle for each session of `specs`, and for settings tuned here.

    Nothing runs if a file changed. Tuned settings count that are for this kind of machine and this
    runtime. `accepts` is the least that passes; `digest` is that of the bundle, as it was received
    by another way.

    Raises:
        BundleError: this is not a bundle, folder or archive, or is not as it was written.
        EnvironmentLacksError: a provider did not start, or there is no room to unpack an archive.
    """
    with opened_bundle(path) as bundle:
        if digest is not None and digest.lower() != bundle.digest:
            raise BundleError(
                f"The bundle's digest is {bundle.digest}, not {digest.lower()}.",
                where=str(path),
                fix="do not use it: get the bundle again from whoever gave you the digest",
            )
        here = target_of(read_environment()) if bundle.manifest.tuned else None
        return CheckReport(
            name=bundle.manifest.name,
            num_files=len(bundle.manifest.files),
            digest=bundle.digest,
            verification=replace(judge_with_proof(bundle, bundle.model, specs), accepts=accepts),
            tuned=tuple(_check(bundle, one) for one in bundle.manifest.tuned if one.target == here),
        )


def judge_with_proof(
    bundle: BundleFolder, model: Path, specs: Sequence[SessionSpec]
) -> VerifyReport:
    """Return the verdict on a model's outputs here, with the bundle's proof of the same bytes.

    Args:
        bundle: the holder of the golden outputs and of the proof.
        model: its own model, or another form of the same network.
        specs: where to run it.

    Raises:
        ResdeployError: the model is not the network of the bundle, or cannot be read.
        ProviderError: a provider did not start.
    """
    report = judge_outputs(model, bundle.golden, specs)
    proof = bundle.manifest.proof
    if proof is None or proof.sha256 != report.model.sha256:
        return report
    return replace(
        report,
        structure=proof.structure,
        static=proof.static,
        metadata=proof.metadata,
        missing={"proof": "; ".join(proof.unproved)} if proof.unproved else {},
        proved_as=None if proof.unproved else proof.sha256,
    )


def golden_answers(model: Path, session: SessionSpec, golden: Golden) -> GoldenAnswers:
    """Return the agreement of a model in a session with the golden outputs.

    Raises:
        ResdeployError: the model is not the network of the reference, or cannot be read.
        EnvironmentLacksError: the provider did not start.
    """
    outputs = [*session_outputs(open_session(model, session), golden.inputs).values()]
    given_NK = float_columns(outputs, golden.info.outputs).astype(np.float64)
    is_same_N = predictions(given_NK) == predictions(golden.reference)
    if golden.exact is not None:
        is_same_N &= (exact_columns(outputs, golden.info.outputs) == golden.exact).all(axis=1)
    outputs_NK, reference_NK = level_infinities(given_NK, golden.reference)
    is_finite = bool(np.isfinite(outputs_NK).all())
    error = float(np.abs(outputs_NK - reference_NK).max(initial=0.0)) if is_finite else float("inf")
    return GoldenAnswers(
        num_inputs=len(reference_NK),
        num_same_class=int(is_same_N.sum()),
        error=error / (float(np.abs(reference_NK).max(initial=0.0)) or 1.0),
    )


def _check(bundle: BundleFolder, settings: TunedSettings) -> TunedCheck:
    model = bundle.path / settings.model
    found = golden_answers(model, settings.session, bundle.golden)
    reasons = _worse(found, settings.answers)
    if settings.max_drop is None:
        (verdict,) = judge_outputs(model, bundle.golden, [settings.session]).verdicts
        reasons = verdict.reasons
    return TunedCheck(settings=settings, found=found, reasons=reasons)


def _worse(found: GoldenAnswers, then: GoldenAnswers) -> tuple[str, ...]:
    """Return the reasons why outputs are clearly worse than when the settings were found."""
    reasons = []
    if found.num_same_class < then.num_same_class:
        reasons.append(
            f"{found.num_same_class} of {found.num_inputs} predictions are the reference's; they "
            f"were {then.num_same_class}"
        )
    if not found.error <= _CLEARLY_WORSE * then.error < np.inf:
        reasons.append(
            f"its largest error is {found.error:.2g} of the largest output; it was {then.error:.2g}"
        )
    return tuple(reasons)
