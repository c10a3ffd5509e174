"""The certificate of an ONNX model against a reference graph: L0, L1 and L2.

L0 is the same wiring, L1 the same weights, L2 every node computed right by the provider. Each that
is missing has its reason. The caller gives the runtime.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import Array
from resdeploy.schema.sessions import PrecisionName, SessionSpec
from resdeploy.schema.verdicts import NodeLocalResult, StaticResult, StructureResult, VerifyReport
from resdeploy.verify.compare_structure import Affine, Alignment, SkeletonNode, align
from resdeploy.verify.normal_form import may_fold, skeleton_of
from resdeploy.verify.precision import UNIT_ROUNDOFF
from resdeploy.verify.run_layers import NodeFault, Run, certify_nodes
from resdeploy.verify.weights import ROUNDED_ONCE_ULP, STATIC_LIMIT_ULP, judge_static

__all__ = ["Candidate", "Reference", "add_certificate", "certify_file", "certify_run"]

# The dtypes in which a node may be judged by the rounding of float32.
_FLOAT32_OR_BETTER = {"float32", "float64"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The reference graph: a model in float64 whose BatchNorms are folded.

    Attributes:
        model: the graph.
        bias_magnitudes: those of `skeleton_of`.
        is_exact: whether its weights are the exact fold of the checkpoint. An ONNX file holds its
            epsilons in float32, which moves the weights by up to a quarter of an ulp.
    """

    model: onnx.ModelProto
    bias_magnitudes: Mapping[str, Array]
    is_exact: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A candidate file certified as far as no run is needed.

    Attributes:
        model: the candidate.
        structure: L0, or None.
        static: L1, or None.
        layers: its affine nodes with their right numbers, for L2.
        missing: by layer of evidence, the reason for its absence.
    """

    model: onnx.ModelProto
    structure: StructureResult | None
    static: StaticResult | None
    layers: tuple[tuple[SkeletonNode, Affine], ...]
    missing: Mapping[str, str]


def certify_file(
    model: onnx.ModelProto,
    reference: Reference | str | None,
    *,
    precision: PrecisionName = "float32",
) -> Candidate:
    """Return L0 and L1 of `model`, and its layers for L2.

    Without a reference, L2 judges each node by the candidate's own weights; `reference` may then
    say why there is none. Weights may be rounded to the type that `precision` claims, in any
    storage type; TF32 rounds them only as it computes.
    """
    missing: dict[str, str] = {}
    own: tuple[tuple[SkeletonNode, Affine], ...] = ()
    alignment: Alignment | None = None
    is_folded = True
    try:
        plain = skeleton_of(model, fold=False)
        own = tuple((node, node.affine) for node in plain.nodes if node.affine is not None)
        if not isinstance(reference, Reference):
            why = reference or "the original network is not here"
            missing["structure"] = missing["static"] = why
        else:
            expected = skeleton_of(reference.model, bias_magnitudes=reference.bias_magnitudes)
            folded = skeleton_of(model) if may_fold(model) else plain
            alignment = align(expected, folded)
            is_folded = len(folded.nodes) == len(plain.nodes)
    except UnsupportedModelError as error:
        missing["structure"] = missing["static"] = error.what
        if not own:
            missing["node_local"] = error.what
    if alignment is None:
        return Candidate(model=model, structure=None, static=None, layers=own, missing=missing)
    assert isinstance(reference, Reference)
    structure, static = alignment.result, None
    is_ours = model.producer_name == "resdeploy" and reference.is_exact
    if is_ours:
        # Written by the same exporter, so that another operator is another network.
        structure = replace(structure, same_form=True)
    if alignment.pairs:
        # Weights folded and rounded, and then rounded once more, are a little further away.
        rounded_once = is_ours and precision in ("float32", "tf32")
        limit = ROUNDED_ONCE_ULP if rounded_once else STATIC_LIMIT_ULP
        dtype = precision if precision in ("float16", "bfloat16") else None
        static = judge_static(alignment.pairs, limit_ulp=limit, dtype=dtype)
    if not structure.same_form:
        missing["structure"] = (
            f"written in other operators than the reference: {structure.differences[0]}"
        )
    if structure.num_aligned < structure.num_layers:
        missing["static"] = (
            f"{structure.num_layers - structure.num_aligned} of {structure.num_layers} layers "
            "have no counterpart"
        )
    expected_by_value = {
        candidate.writes: exact.affine
        for exact, candidate in alignment.pairs
        if exact.affine is not None
        and candidate.affine is not None
        and exact.affine.weight.shape == candidate.affine.weight.shape
    }
    # Before the rest of a fold, values differ from the reference's of the same name.
    if not is_folded:
        expected_by_value = {}
    layers = tuple((node, expected_by_value.get(node.writes, affine)) for node, affine in own)
    return Candidate(
        model=model, structure=structure, static=static, layers=layers, missing=missing
    )


def certify_run(
    candidate: Candidate, inputs: Array, run: Run, *, precision: PrecisionName = "float32"
) -> tuple[NodeLocalResult, NodeFault | None] | str:
    """Return L2 of a candidate on one provider and its first faulty node; or why it is missing.

    Args:
        candidate: from `certify_file`.
        inputs: (N, ...) float32; the first two are run.
        run: opens a model on that provider, with extended optimisations, and runs it. (All of
            them would make other kernels of a graph with more outputs than of the one deployed.)
        precision: the arithmetic that is claimed, whose rounding the bound allows.
    """
    if "node_local" in candidate.missing:
        return candidate.missing["node_local"]
    if not candidate.layers:
        return "the model has no layer that could be judged by itself"
    types = {node.affine.dtype for node, _ in candidate.layers if node.affine is not None}
    if not types <= _FLOAT32_OR_BETTER:
        return f"the weights are {', '.join(sorted(types))}: no bound of {precision} applies"
    unit_roundoff = UNIT_ROUNDOFF[precision]
    return certify_nodes(
        candidate.model, candidate.layers, inputs, run, unit_roundoff=unit_roundoff
    )


def add_certificate(
    report: VerifyReport,
    candidate: Candidate,
    inputs: Array,
    run_on: Callable[[SessionSpec], Run],
    *,
    precision: PrecisionName = "float32",
) -> tuple[VerifyReport, dict[str, NodeFault]]:
    """Return `report` with L0 to L2 in it, and the first faulty node of each provider that has one.

    Args:
        report: the verdicts end to end.
        candidate: from `certify_file`.
        inputs: (N, ...) float32, to run nodes on.
        run_on: returns the runner of models on such a session.
        precision: the arithmetic that is claimed.
    """
    verdicts, faults = [], {}
    for verdict in report.verdicts:
        spec = replace(verdict.session.spec, graph_level="extended")
        outcome = certify_run(candidate, inputs, run_on(spec), precision=precision)
        if isinstance(outcome, str):
            missing = {**verdict.missing, "node_local": outcome}
            verdicts.append(replace(verdict, missing=missing))
            continue
        result, fault = outcome
        missing = {name: why for name, why in verdict.missing.items() if name != "node_local"}
        verdicts.append(replace(verdict, node_local=result, missing=missing))
        if fault is not None:
            faults[spec.provider] = fault
    file_layers = ("structure", "static")
    missing = {k: v for k, v in report.missing.items() if k not in file_layers}
    missing |= {k: v for k, v in candidate.missing.items() if k in file_layers}
    certified = replace(
        report,
        verdicts=tuple(verdicts),
        structure=candidate.structure,
        static=candidate.static,
        missing=missing,
    )
    return certified, faults
