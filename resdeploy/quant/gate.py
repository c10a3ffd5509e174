"""The gate of a lowered model: a budget is held by what held-out samples show, not by a count.

Of n held-out samples that are like those to come, the changed fraction of all is at most Clopper
and Pearson's one-sided 95 % bound (`statistics.proportions.upper_bound`): 380 samples of which none
changed show 0.79 %, 7 show 34.8 %. A budget below the bound is *not shown*, whatever the count is;
one below the count is not held. Likewise for the drop in accuracy, by the samples that were right
and are not any more; what was gained by luck is not set off against that. Without labels it is the
changed predictions, as no more accuracy is lost than they are. Of a map of classes a sample counts
as the fraction of its places, and the bound is Bentkus's.

A relative error is measured, and has no such bound.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from resdeploy.errors import ResdeployError
from resdeploy.schema.quants import (
    JudgedOutput,
    OutputKind,
    QuantBudget,
    QuantQuality,
    QuantSpec,
)
from resdeploy.statistics.proportions import num_trials_to_show, upper_bound

__all__ = ["DEFAULT_FRACTION", "Gate", "budget_for", "num_to_show"]

# Of predictions that may change, or of accuracy that may be lost; and of numbers, 20 dB of SQNR.
DEFAULT_FRACTION = 0.01
_DEFAULT_ERROR = 0.1

_DECIDING: tuple[OutputKind, ...] = ("scores", "logit", "classes")
_PLURALS = {
    "map": "a map of features",
    "embedding": "an embedding",
    "regression": "a number",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A budget, with the outputs it is for.

    Attributes:
        budget: the limits.
        outputs: what each is judged as.
    """

    budget: QuantBudget
    outputs: Sequence[JudgedOutput]

    def failures(self, quality: QuantQuality) -> tuple[str, ...]:
        """Return the limits that the held-out samples themselves are beyond; empty if none."""
        return tuple(self._failures(quality))

    def not_shown(self, quality: QuantQuality) -> tuple[str, ...]:
        """Return the limits that so few samples do not show to hold; empty if none."""
        return tuple(self._not_shown(quality))

    def holds(self, quality: QuantQuality) -> bool:
        """True if nothing fails, and all is shown that as many samples could show."""
        if self.failures(quality):
            return False
        return all(
            share.bound <= share.limit or share.least_bound > share.limit
            for share in self._shares(quality)
        )

    def least_shown(self, num: int) -> str | None:
        """Return a warning if `num` held-out samples cannot show the budget, whatever they say."""
        limits = [
            limit
            for limit in (self.budget.max_flips, self.budget.max_drop)
            if limit is not None and upper_bound(0, num) > limit
        ]
        if not limits:
            return None
        return (
            f"{num} held-out {_samples(num)} can show a change of at most "
            f"{_percent(upper_bound(0, num))}, and {_percent(min(limits))} is asked for: "
            f"{_needed(min(limits))}"
        )

    def _failures(self, quality: QuantQuality) -> Iterator[str]:
        for share in self._shares(quality):
            if not share.fraction <= share.limit:  # NaN is no budget
                yield f"{share.what}; at most {_percent(share.limit)} may"
        limit = self.budget.max_error
        several = len(self.outputs) > 1
        for one in quality.outputs:
            if one.error is not None and not (
                np.isfinite(one.error) and (limit is None or one.error <= limit)
            ):
                yield (
                    f"the relative error{f' of {one.name}' if several else ''} is {one.error:.3g}"
                    + ("" if limit is None else f"; at most {limit:g} is asked for")
                )

    def _not_shown(self, quality: QuantQuality) -> Iterator[str]:
        for share in self._shares(quality):
            if share.fraction <= share.limit and not share.bound <= share.limit:
                yield (
                    f"{share.what}, which shows no more than {_percent(share.bound)} (exact, "
                    f"one-sided 95 %); at most {_percent(share.limit)} is asked for: "
                    f"{_needed(share.limit, rate=share.fraction, is_counted=share.is_counted)}"
                )

    def _shares(self, quality: QuantQuality) -> Iterator["_Share"]:
        """Yield every fraction that is limited."""
        several = sum(output.decides for output in self.outputs) > 1
        for one in quality.outputs:
            of = f" of {one.name}" if several else ""
            changed = (one.changed, one.changed_at_most, f"changed{of}")
            lost = (one.lost, one.lost_at_most, f"were right{of} and are not any more")
            for limit, (count, bound, what) in (
                (self.budget.max_flips, changed),
                (self.budget.max_drop, changed if one.lost is None else lost),
            ):
                if limit is not None and count is not None and bound is not None:
                    num, is_counted = quality.num_inputs, one.num_decisions == 1
                    said = f"{count:.0f} of {num} predictions {what}"
                    if not is_counted:
                        said = f"{count / num:.2%} of the classes of {num} inputs {what}"
                    yield _Share(
                        fraction=count / num,
                        bound=bound,
                        # Some place of a map always changes.
                        least_bound=upper_bound(
                            0 if is_counted else 0.5, num, is_counted=is_counted
                        ),
                        limit=limit,
                        what=said,
                        is_counted=is_counted,
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """A fraction that is limited.

    Attributes:
        fraction: measured.
        bound: of what that shows.
        least_bound: that so many inputs could show.
        limit: the budget.
        what: the measurement in words.
        is_counted: whether each input counts as a whole.
    """

    fraction: float
    bound: float
    least_bound: float
    limit: float
    what: str
    is_counted: bool


def budget_for(
    spec: QuantSpec, outputs: Sequence[JudgedOutput], *, has_labels: bool
) -> QuantBudget:
    """Return the limits of a request, and the defaults of what it leaves open.

    Raises:
        ResdeployError: a limit is for another kind of output than the model has.
    """
    decides = any(output.judged_as in _DECIDING for output in outputs)
    asked: tuple[tuple[Literal["--max-flips", "--max-drop"], float | None], ...] = (
        ("--max-flips", spec.max_flips),
        ("--max-drop", spec.max_drop),
    )
    for option, limit in asked:
        if limit is not None and not decides:
            one = outputs[0]
            raise ResdeployError(
                f"{option} is for predictions, and {one.name!r} is {_PLURALS[one.judged_as]} "
                f"({one.because}).",
                fix="--max-error, its relative error; or --output-kind, if it is something else",
            )
    if spec.max_error is not None and all(output.judged_as == "classes" for output in outputs):
        exact = [output for output in outputs if output.because.endswith("class indices")]
        if len(exact) == len(outputs):
            raise ResdeployError(
                f"--max-error is for numbers, and {exact[0].name!r} decides ({exact[0].because}).",
                fix="--max-flips, the fraction of decisions that may change",
            )
    max_flips, max_drop, max_error = spec.max_flips, spec.max_drop, spec.max_error
    if decides and max_flips is None and max_drop is None:
        if has_labels:
            max_drop = DEFAULT_FRACTION
        else:
            max_flips = DEFAULT_FRACTION
    if not decides and max_error is None:
        max_error = _DEFAULT_ERROR
    return QuantBudget(max_flips=max_flips, max_drop=max_drop, max_error=max_error)


def num_to_show(spec: QuantSpec) -> int:
    """Return the held-out samples without a change that a request takes; 0 if none shows it."""
    limits = [limit for limit in (spec.max_flips, spec.max_drop) if limit is not None]
    if not limits:
        limits = [DEFAULT_FRACTION]
    return max((num_trials_to_show(limit) or 0 for limit in limits), default=0)


def _needed(limit: float, *, rate: float = 0.0, is_counted: bool = True) -> str:
    num = num_trials_to_show(limit, rate=rate, is_counted=is_counted)
    if num is None:
        return "no number of samples shows that"
    without = "without a change" if rate == 0 else "of which as few change"
    return f"{num} held-out samples {without} would"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def _samples(num: int) -> str:
    return "sample" if num == 1 else "samples"
