"""Attribution of an error to a provider's faster arithmetic: the model run both ways.

A relative error of 2e-3 on CUDA may be TF32, or a wrong weight with TF32 on top. One run under each
position of the provider's own switch tells them apart: the error that remains without the fast
arithmetic is the model's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from resdeploy.errors import ReportedError
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import ArithmeticResult, Attribution
from resdeploy.session.providers import Provider, find_provider
from resdeploy.session.run import session_outputs
from resdeploy.session.session import Session, open_session
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.named_outputs import judge_named_outputs
from resdeploy.verify.precision import RunFacts

__all__ = ["attribute_error", "facts"]


def facts(spec: SessionSpec) -> RunFacts:
    """Return the facts about a session that are known before its numbers."""
    provider = find_provider(spec.provider)
    widens = provider.computes_float16 is False
    switch = provider.arithmetics
    if switch is None or dataclasses.replace(spec, **switch.exact) == spec:
        return RunFacts(widens_float16=widens)
    return RunFacts(fast=switch.precision, advice=switch.advice, widens_float16=widens)


def attribute_error(
    model: Path,
    golden: Golden,
    session: Session,
    outputs: Mapping[str, np.ndarray],
    *,
    open_on: Callable[[Path, SessionSpec], Session] = open_session,
) -> Attribution | str | None:
    """Return the errors of both arithmetics of a session's provider, for the same inputs.

    None if the provider has but one, and a reason if the other could not be run.

    Args:
        model: the file of the session.
        golden: the inputs and their reference.
        session: the one that was asked for.
        outputs: its outputs for them, (N, ...) each.
        open_on: opens the model another way.
    """
    spec = session.info.spec
    provider = find_provider(spec.provider)
    if provider.arithmetics is None:
        return None
    results = []
    for changes in (provider.arithmetics.exact, provider.arithmetics.fast):
        wanted = dataclasses.replace(spec, **changes)
        try:
            found = (
                outputs
                if wanted == spec
                else session_outputs(open_on(model, wanted), golden.inputs)
            )
        except ReportedError as error:
            return f"{_differing(provider, wanted, changes)}: {error.what}"
        comparison = judge_named_outputs(found, golden, facts=facts(wanted))
        results.append(
            ArithmeticResult(
                options=_differing(provider, wanted, changes),
                rel_l2=comparison.diff.rel_l2,
                found="unknown" if comparison.precision is None else comparison.precision.found,
            )
        )
    exact, fast = results
    return Attribution(exact=exact, fast=fast)


def _differing(provider: Provider, spec: SessionSpec, changes: Mapping[str, object]) -> str:
    """Return the provider options by which a position differs from the other, as "name=value"."""
    switch = provider.arithmetics
    if switch is None:
        return ""
    others = switch.fast if changes == switch.exact else switch.exact
    here = provider.options(spec)
    there = provider.options(dataclasses.replace(spec, **others))
    differing = [f"{name}={value}" for name, value in here.items() if there.get(name) != value]
    return " ".join(differing) or "default"
