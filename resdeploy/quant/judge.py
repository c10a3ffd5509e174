"""Quality of a lowered model: each of its outputs beside the float32 model's, as what it is.

The error of floats is relative, e = |y' - y| / |y|; as SQNR, that is -20 log10(e) decibels. Several
outputs count alike, however large their numbers are. Decisions are counted beside it: those that
changed, and where labels are known, those that were right and are not any more.

Shapes: N samples, K classes or features, P places of a sample at which a class is decided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.graph.affine_layer import Array
from resdeploy.schema.quants import JudgedOutput, OutputQuality, QuantQuality
from resdeploy.statistics.proportions import upper_bound
from resdeploy.verify.compare import predictions

__all__ = ["Judge", "decisions"]

_TINY = float(np.finfo(np.float64).tiny)
_ALL = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """The float32 model's outputs for held-out samples, which others are held against.

    Attributes:
        outputs: what each is.
        reference: (N, ...) each, by name.
        labels: the right decisions, (N,) or (N, ...) in the shape of a map, for the one output that
            decides; negative where a place is not to count. None without labels.
    """

    outputs: Sequence[JudgedOutput]
    reference: Mapping[str, Array]
    labels: NDArray[np.int64] | None = None

    def quality(self, candidate: Mapping[str, Array], which: slice = _ALL) -> QuantQuality:
        """Return the quality of a model's outputs for the held-out samples `which`."""
        labels = None if self.labels is None else self.labels[which]
        found = [
            _quality(output, self.reference[output.name][which], candidate[output.name], labels)
            for output in self.outputs
        ]
        num = len(next(iter(candidate.values())))
        errors = [one.error for one in found if one.error is not None]
        if not errors:  # decisions alone: the changed fraction is all that is known
            errors = [(one.changed or 0.0) / num for one in found]
        changed_N, margin_N = np.zeros(num, bool), np.full(num, np.inf)
        for output in self.outputs:
            if output.decides:
                reference = self.reference[output.name][which]
                changed_N |= _changed(output, reference, candidate[output.name]) > 0
                margin_N = np.minimum(margin_N, _margins(output, reference))
        flipped_N = margin_N[changed_N & np.isfinite(margin_N)]
        known_N = margin_N[np.isfinite(margin_N)]
        return QuantQuality(
            error=float(np.sqrt(np.mean(np.square(errors)))),
            num_inputs=num,
            num_flips=int(changed_N.sum()),
            largest_flip_margin=float(flipped_N.max(initial=0.0)),
            median_margin=float(np.median(known_N)) if len(known_N) else 0.0,
            outputs=tuple(found),
        )


def decisions(output: JudgedOutput, values: Array) -> NDArray[np.int64]:
    """Return the decisions (N, P) of an output that decides; of NaN none that is a class."""
    if output.judged_as == "scores":
        found_N = predictions(values.reshape(len(values), -1))
        unknown_N = np.isnan(values).reshape(len(values), -1).any(axis=1)
        return np.where(unknown_N, -1, found_N).astype(np.int64)[:, np.newaxis]
    if output.judged_as == "logit":
        logit_N1 = values.reshape(len(values), 1)
        return np.where(np.isnan(logit_N1), -1, logit_N1 > output.threshold).astype(np.int64)
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values).any(axis=1), -1, values.argmax(axis=1))
    return values.reshape(len(values), -1).astype(np.int64)


def _quality(
    output: JudgedOutput, reference: Array, candidate: Array, labels: NDArray[np.int64] | None
) -> OutputQuality:
    found: dict[str, Any] = {}
    if reference.dtype.kind == "f":
        found |= _errors(reference, candidate)
    if output.decides:
        found |= _decided(output, reference, candidate, labels)
    if output.judged_as == "embedding":
        found |= _directions(reference, candidate)
    if output.judged_as in ("logit", "regression"):
        off = np.abs(candidate.astype(np.float64) - reference)
        found["largest_error"] = float(off.max(initial=0.0)) if np.isfinite(off).all() else np.inf
    return OutputQuality(name=output.name, judged_as=output.judged_as, **found)


def _errors(reference: Array, candidate: Array) -> dict[str, float]:
    """Return the relative error of all, and of the sample with the largest; inf if not finite."""
    if not np.isfinite(candidate).all():
        return {"error": np.inf, "worst_error": np.inf}
    squares = np.array(
        [
            # Sample by sample, so that no map is in memory again in float64.
            (np.sum(np.square(c.astype(np.float64) - r)), np.sum(np.square(r.astype(np.float64))))
            for c, r in zip(candidate, reference, strict=True)
        ]
    ).T
    off_N, size_N = np.sqrt(squares)
    return {
        "error": float(np.linalg.norm(off_N) / max(float(np.linalg.norm(size_N)), _TINY)),
        "worst_error": float(np.max(off_N / np.maximum(size_N, _TINY))),
    }


def _decided(
    output: JudgedOutput, reference: Array, candidate: Array, labels: NDArray[np.int64] | None
) -> dict[str, Any]:
    before_NP, after_NP = decisions(output, reference), decisions(output, candidate)
    num, is_counted = len(before_NP), before_NP.shape[1] == 1
    changed = float((before_NP != after_NP).mean(axis=1).sum())
    found: dict[str, Any] = {
        "num_decisions": before_NP.shape[1],
        "changed": changed,
        "changed_at_most": upper_bound(changed, num, is_counted=is_counted),
    }
    if labels is None:
        return found
    truth_NP = labels.reshape(num, -1)
    counted_NP = truth_NP >= 0
    was_right_NP, is_right_NP = before_NP == truth_NP, after_NP == truth_NP
    lost_NP = was_right_NP & ~is_right_NP & counted_NP
    lost = float((lost_NP.sum(axis=1) / np.maximum(counted_NP.sum(axis=1), 1)).sum())
    total = max(1, int(counted_NP.sum()))
    found |= {
        "lost": lost,
        "lost_at_most": upper_bound(lost, num, is_counted=is_counted),
        "accuracy": int((is_right_NP & counted_NP).sum()) / total,
        "accuracy_before": int((was_right_NP & counted_NP).sum()) / total,
    }
    if not is_counted:
        truth = truth_NP[counted_NP]
        found["iou"] = _iou(after_NP[counted_NP], truth)
        found["iou_before"] = _iou(before_NP[counted_NP], truth)
    return found


def _iou(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Return the mean over the classes that occur of intersection over union."""
    ratios = []
    for one in np.union1d(found, truth):
        is_found, is_true = found == one, truth == one
        ratios.append((is_found & is_true).sum() / (is_found | is_true).sum())
    return float(np.mean(ratios)) if ratios else 0.0


def _directions(reference: Array, candidate: Array) -> dict[str, float]:
    """Return the cosines, and the fraction of samples whose nearest neighbour is the same one."""
    if not np.isfinite(candidate).all():
        return {"least_cosine": -1.0, "mean_cosine": -1.0, "same_nearest": 0.0}
    before_NK, after_NK = (_normalised(values) for values in (reference, candidate))
    cosine_N = np.sum(before_NK * after_NK, axis=1)
    nearest = [_nearest(rows_NK) for rows_NK in (before_NK, after_NK)]
    return {
        "least_cosine": float(cosine_N.min()),
        "mean_cosine": float(cosine_N.mean()),
        "same_nearest": float(np.mean(nearest[0] == nearest[1])),
    }


def _normalised(values: Array) -> NDArray[np.float64]:
    rows_NK = values.reshape(len(values), -1).astype(np.float64)
    length_N1 = np.linalg.norm(rows_NK, axis=1, keepdims=True)
    return np.asarray(rows_NK / np.maximum(length_N1, _TINY))


def _nearest(rows_NK: NDArray[np.float64]) -> NDArray[np.intp]:
    cosine_NN = rows_NK @ rows_NK.T
    np.fill_diagonal(cosine_NN, -np.inf)
    return np.asarray(cosine_NN.argmax(axis=1))


def _changed(output: JudgedOutput, reference: Array, candidate: Array) -> NDArray[np.float64]:
    """Return the fraction of each sample's decisions that changed, (N,)."""
    differs_NP = decisions(output, reference) != decisions(output, candidate)
    return np.asarray(differs_NP.mean(axis=1))


def _margins(output: JudgedOutput, reference: Array) -> NDArray[np.float64]:
    """Return the lead of each decision, (N,); infinite where it has none or several."""
    rows_NK = reference.reshape(len(reference), -1)
    if output.judged_as == "scores":
        two_N2 = np.partition(rows_NK.astype(np.float64), -2, axis=1)[:, -2:]
        return np.asarray(two_N2[:, 1] - two_N2[:, 0])
    if output.judged_as == "logit":
        return np.abs(rows_NK[:, 0].astype(np.float64) - output.threshold)
    return np.full(len(rows_NK), np.inf)
