"""The outputs of a model by kind: floating-point numbers by their noise, integers one by one.

Integers and bools are decisions, such as class indices, and have no noise: each is to be the
reference's, or one of those that the golden file lists as near-ties, which float32's noise explains
as well. The floats are judged side by side and, where there are several outputs, each by itself
too: a small one is not to hide behind the noise of a large one.

Shapes: N inputs, K columns of floats, J of integers, O outputs of floats, E near-ties.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import Array
from resdeploy.schema.sessions import PrecisionName
from resdeploy.schema.verdicts import Comparison, GoldenInfo, OutputInfo
from resdeploy.session.batches import side_by_side
from resdeploy.verify.end_to_end import judge_end_to_end
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.precision import RunFacts

__all__ = [
    "exact_columns",
    "exact_reasons",
    "float_columns",
    "golden_from_outputs",
    "judge_named_outputs",
]

# What a float becomes that is no integer.
_NO_INTEGER = np.iinfo(np.int64).min

# Wrong integers that are listed one by one.
_MOST_LISTED = 3


def golden_from_outputs(
    inputs: Array,
    exact: Mapping[str, Array],
    own: Mapping[str, Array],
    *,
    info: GoldenInfo,
    labels: NDArray[np.int64] | None = None,
) -> Golden:
    """Return the golden reference of a model from its outputs in float64 and in float32.

    Args:
        inputs: (N, ...).
        exact: the outputs in float64, (N, ...) each.
        own: the same outputs in float32; their types are those that a candidate is to have.
        info: where they come from.
        labels: (N,), or None.

    Raises:
        ResdeployError: the outputs have other shapes in float32; there are none; they are NaN, or
            infinite in other places.
    """
    shapes = [{name: y.shape for name, y in outputs.items()} for outputs in (exact, own)]
    if shapes[0] != shapes[1]:
        raise ResdeployError(
            f"The model's outputs have the shapes {shapes[0]} in float64, {shapes[1]} in float32.",
            where=info.source,
            fix="make the shape of the outputs independent of the values of the input",
        )
    kinds = tuple(
        OutputInfo(name=name, dtype=y.dtype.name, shape=y.shape[1:]) for name, y in own.items()
    )
    if not sum(kind.width for kind in kinds):
        raise ResdeployError(
            "The model has no outputs, or empty ones.",
            where=info.source,
            fix="return at least one tensor, with a row of numbers for each sample",
        )
    reference_NK = float_columns([*exact.values()], kinds).astype(np.float64)
    own_NK = float_columns([*own.values()], kinds).astype(np.float64)
    _check_finite(reference_NK, own_NK, info)
    errors_NK = np.subtract(
        own_NK, reference_NK, out=np.zeros_like(own_NK), where=np.isfinite(reference_NK)
    )
    reference_NJ, own_NJ = (exact_columns([*y.values()], kinds) for y in (exact, own))
    n, j = np.nonzero(own_NJ != reference_NJ)
    golden = Golden(
        inputs=inputs,
        reference=reference_NK,
        noise_l2=np.linalg.norm(errors_NK, axis=1),
        labels=labels,
        info=replace(info, outputs=kinds),
    )
    if reference_NJ.shape[1]:
        near_ties = np.stack([n, j, own_NJ[n, j]], axis=1)
        golden = replace(golden, exact=reference_NJ, near_ties=near_ties)
    if sum(not kind.is_exact for kind in kinds) > 1:
        parts = [np.linalg.norm(errors_NK[:, columns], axis=1) for _, columns in _floats(kinds)]
        golden = replace(golden, output_noise=np.stack(parts, axis=1))
    return golden


def judge_named_outputs(
    outputs: Mapping[str, Array],
    golden: Golden,
    *,
    precision: PrecisionName = "float32",
    facts: RunFacts | None = None,
) -> Comparison:
    """Return the verdict on a candidate's outputs for the golden inputs, each as what it is.

    Args:
        outputs: (N, ...) each, in the order of the reference; their names may be others.
        golden: the reference, with the yardsticks.
        precision: the arithmetic that the candidate is said to compute in.
        facts: about its session.

    Raises:
        ResdeployError: the candidate's outputs are not as many, or have other shapes.
    """
    kinds, arrays = golden.info.outputs, [*outputs.values()]
    outputs_NK = float_columns(arrays, kinds)
    joint = judge_end_to_end(outputs_NK, golden, precision=precision, facts=facts)
    reasons = joint.reasons
    if golden.output_noise is not None and precision == "float32":
        parts = tuple(_parts(outputs_NK, golden, facts))
        reasons = parts or reasons
    exact_NJ = exact_columns(arrays, kinds)
    if not outputs_NK.shape[1]:  # the decisions themselves are outputs
        assert golden.exact is not None
        is_same_N = (exact_NJ == golden.exact).all(axis=1)
        joint = replace(
            joint,
            top1_agreement=float(is_same_N.mean()),
            num_changed_top1=int((~is_same_N).sum()),
        )
    types = tuple(_type_reasons(arrays, golden, precision))
    return replace(joint, reasons=(*types, *reasons, *exact_reasons(exact_NJ, golden)))


def float_columns(outputs: Sequence[Array], kinds: Sequence[OutputInfo]) -> Array:
    """Return the floats of outputs (N, ...) side by side: (N, K).

    Without `kinds`, as of golden files of before, all outputs are taken for floats.

    Raises:
        ResdeployError: there are not as many outputs as `kinds`, or they have other shapes.
    """
    return side_by_side([y for y, _ in _of_kind(outputs, kinds, exact=False)], len(outputs[0]))


def exact_columns(outputs: Sequence[Array], kinds: Sequence[OutputInfo]) -> NDArray[np.int64]:
    """Return the integers of outputs (N, ...) side by side: (N, J); bools as 0 and 1.

    Raises:
        ResdeployError: as `float_columns`.
    """
    found = [_as_integers(y) for y, kind in _of_kind(outputs, kinds, exact=True) if kind]
    return side_by_side(found, len(outputs[0])).astype(np.int64)


def exact_reasons(exact_NJ: NDArray[np.int64], golden: Golden) -> tuple[str, ...]:
    """Return the reasons against the integers of the first N inputs, those without explanation."""
    if golden.exact is None:
        return ()
    expected_NJ, near_ties = golden.exact[: len(exact_NJ)], golden.near_ties
    differing = np.argwhere(exact_NJ != expected_NJ).tolist()
    excused = set() if near_ties is None else {*map(tuple, near_ties.tolist())}
    wrong = [(n, j) for n, j in differing if (n, j, int(exact_NJ[n, j])) not in excused]
    reasons = []
    for n, j in wrong[:_MOST_LISTED]:
        place = golden.info.place(j, exact=True)
        found = "no integer" if exact_NJ[n, j] == _NO_INTEGER else exact_NJ[n, j]
        reasons.append(
            f"{place} of input {n} is {found}, not {expected_NJ[n, j]}, and no near-tie explains it"
        )
    if len(wrong) > _MOST_LISTED:
        reasons.append(f"so are {len(wrong) - _MOST_LISTED} more integers")
    return tuple(reasons)


def _of_kind(
    outputs: Sequence[Array], kinds: Sequence[OutputInfo], *, exact: bool
) -> Iterator[tuple[Array, OutputInfo | None]]:
    """Yield the outputs of one kind, each with what it is to be."""
    if not kinds:
        yield from ((y, None) for y in outputs)
        return
    found, wanted = [y.shape[1:] for y in outputs], [kind.shape for kind in kinds]
    if found != wanted:
        raise ResdeployError(
            f"The candidate's outputs have the shapes {found} for one input, the reference's "
            f"{wanted}.",
            where=", ".join(kind.name for kind in kinds),
            fix="check that model and reference are the same network",
        )
    for y, kind in zip(outputs, kinds, strict=True):
        if kind.is_exact is exact:
            yield y, kind


def _as_integers(output: Array) -> NDArray[np.int64]:
    if output.dtype.kind != "f":
        return output.astype(np.int64)
    is_whole = np.isfinite(output) & (output == np.round(output)) & (np.abs(output) < 2.0**63)
    whole: NDArray[np.int64] = np.where(is_whole, output, 0).astype(np.int64)
    return np.where(is_whole, whole, _NO_INTEGER)


def _type_reasons(
    outputs: Sequence[Array], golden: Golden, precision: PrecisionName
) -> Iterator[str]:
    """Yield the outputs of another type; in a lower precision, floats may be of a lower one."""
    for y, kind in zip(outputs, golden.info.outputs, strict=False):
        is_lower = precision != "float32" and y.dtype.kind == "f" and not kind.is_exact
        if y.dtype != kind.dtype and not is_lower:
            yield f"output {kind.name!r} is {y.dtype}, the reference's is {kind.dtype}"


def _parts(outputs_NK: Array, golden: Golden, facts: RunFacts | None) -> Iterator[str]:
    """Yield the reasons against each output of floats by itself."""
    assert golden.output_noise is not None
    for o, (kind, columns) in enumerate(_floats(golden.info.outputs)):
        part = replace(
            golden,
            reference=golden.reference[:, columns],
            noise_l2=golden.output_noise[:, o],
            info=replace(
                golden.info,
                outputs=(kind,),
                precision_noise=None,
                drawn_noise=_drawn_noise(golden, columns),
            ),
            sigma=None if golden.sigma is None else golden.sigma[:, columns],
        )
        if kind.width:
            for reason in judge_end_to_end(outputs_NK[:, columns], part, facts=facts).reasons:
                named = repr(kind.name) in reason
                yield reason if named else f"output {kind.name!r}: {reason}"


def _drawn_noise(golden: Golden, columns: slice) -> float | None:
    """Return the drawn noise of some columns alone: that of all, shared out as sigma is."""
    if golden.sigma is None or golden.info.drawn_noise is None:
        return None
    sigma, finite = golden.sigma, golden.finite[: len(golden.sigma)]
    shared = float(np.linalg.norm(sigma) * np.linalg.norm(finite[:, columns]))
    own = float(np.linalg.norm(sigma[:, columns]) * np.linalg.norm(finite))
    return golden.info.drawn_noise * own / shared if shared else None


def _floats(kinds: Sequence[OutputInfo]) -> Iterator[tuple[OutputInfo, slice]]:
    """Yield each output of floats with its columns."""
    start = 0
    for kind in kinds:
        if not kind.is_exact:
            yield kind, slice(start, start + kind.width)
            start += kind.width


def _check_finite(
    reference_NK: NDArray[np.float64], own_NK: NDArray[np.float64], info: GoldenInfo
) -> None:
    """Raise unless the outputs are finite, or the same infinity (a mask) in both precisions."""
    for outputs_NK, other_NK, precision in (
        (reference_NK, reference_NK, "float64"),
        (own_NK, reference_NK, "float32"),
    ):
        both_finite = np.isfinite(outputs_NK) & np.isfinite(other_NK)
        bad = ~both_finite & (outputs_NK != other_NK)
        if bad.any() or (outputs_NK.size and not np.isfinite(outputs_NK).any()):
            raise ResdeployError(
                f"The model's own outputs are not finite in {precision}, so they prove nothing.",
                where=f"{info.source}, {info.inputs}",
                fix="check the weights and BatchNorm statistics for NaN, and that training ended",
            )
