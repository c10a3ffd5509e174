"""Judge of the candidates of `tune`: their answers, before their speed."""

import dataclasses
import functools
from dataclasses import dataclass

from resdeploy.bundle.check import judge_with_proof
from resdeploy.bundle.evaluate import Answers, LoadSamples, answer, compare_answers
from resdeploy.bundle.folder import BundleFolder
from resdeploy.errors import EnvironmentLacksError
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import TuneSpec
from resdeploy.session.providers import find_provider
from resdeploy.tune.space import Candidate, Variant

__all__ = ["Judge", "Judgement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Judgement of a candidate's answers: the evidence, or the reason for its exclusion."""

    evidence: str = ""
    drop: float | None = None
    out: str | None = None


class Judge:
    """Judges a candidate's answers, each way of computing them once.

    Threads, spinning and the batch size change no answer beyond float32's own noise.
    """

    def __init__(self, bundle: BundleFolder, spec: TuneSpec, load: LoadSamples | None) -> None:
        self._bundle = bundle
        self._spec = spec
        # Every candidate is judged on the same samples: they are read once.
        self._load = None if load is None else functools.cache(load)
        self._judgement_of = functools.cache(self._judged)
        self._reference: Answers | None = None

    def __call__(self, candidate: Candidate) -> Judgement:
        """Return the judgement of its answers."""
        session = dataclasses.replace(candidate.session, num_threads=None, spinning=True)
        return self._judgement_of(candidate.variant, session)

    def _judged(self, variant: Variant, session: SessionSpec) -> Judgement:
        if variant.refused is not None:
            return Judgement(out=variant.refused)
        provider = find_provider(session.provider)
        if variant.precision in ("float16", "bfloat16") and provider.computes_float16 is False:
            return Judgement(out=f"{provider.ort_name} computes {variant.precision} in float32")
        try:
            if self._spec.max_drop is None:
                return self._lossless(variant, session)
            return self._within(variant, session, self._spec.max_drop)
        except EnvironmentLacksError as error:
            return Judgement(out=error.what)

    def _lossless(self, variant: Variant, session: SessionSpec) -> Judgement:
        report = judge_with_proof(self._bundle, variant.path, [session])
        (verdict,) = report.verdicts
        if not report.passed:
            return Judgement(out=f"not lossless: {(*report.reasons, *verdict.reasons)[0]}")
        ratio = verdict.comparison.noise_ratio
        return Judgement(evidence=f"{report.verdict} as float32, R = {ratio:.3g}")

    def _within(self, variant: Variant, session: SessionSpec, max_drop: float) -> Judgement:
        assert self._load is not None
        if variant.path == self._bundle.model and session == SessionSpec():
            return Judgement(evidence="the model it is measured by", drop=0.0)
        # The drop is one from float32: another session's arithmetic may lose something too.
        if self._reference is None:
            self._reference = answer(self._bundle.model, self._load, SessionSpec())
        answers = answer(variant.path, self._load, session)
        report = compare_answers(answers, self._reference, max_drop)
        assert report.paired is not None
        low, high = (100 * end for end in report.paired.drop_interval)
        shown = f"drop {100 * (report.drop or 0):.2f} points ({low:.2f} to {high:.2f})"
        if not report.passed:
            return Judgement(drop=report.drop, out=f"{shown}, not shown to be within the budget")
        return Judgement(drop=report.drop, evidence=shown)
