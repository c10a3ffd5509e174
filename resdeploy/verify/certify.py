"""The certificate of an ONNX model against a reference graph: L0, L1 and L2.

L0 is the same wiring, L1 the same weights, L2 every node computed right by the provider. Each that
is missing has its reason. The caller gives the runtime.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.affine_layer import Array
from resdeploy.graph.onnx_file import fed_inputs
from resdeploy.schema.exports import LABELS_KEY, PREPROCESS_KEY
from resdeploy.schema.sessions import PrecisionName, SessionSpec
from resdeploy.schema.verdicts import (
    MetadataResult,
    NodeLocalResult,
    StaticResult,
    StructureResult,
    VerifyReport,
)
from resdeploy.verify.compare_structure import Alignment, align
from resdeploy.verify.layer_bounds import judge_nodes
from resdeploy.verify.normal_form import skeleton_of
from resdeploy.verify.own_layers import OwnLayer, own_layers
from resdeploy.verify.precision import UNIT_ROUNDOFF
from resdeploy.verify.run_layers import NodeFault, Run, certify_nodes
from resdeploy.verify.weights import judge_static

__all__ = [
    *("JUDGED_METADATA", "Candidate", "Reference"),
    *("add_certificate", "certify_file", "certify_run", "refuse_difference"),
]

# Entries of a file's metadata that `evaluate`, `predict` and a bundle go by.
JUDGED_METADATA = (PREPROCESS_KEY, LABELS_KEY)

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
        metadata: its entries of `JUDGED_METADATA`, as a file of it would hold them.
    """

    model: onnx.ModelProto
    bias_magnitudes: Mapping[str, Array]
    is_exact: bool
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A candidate file certified as far as no run is needed.

    Attributes:
        model: the candidate.
        structure: L0, or None.
        static: L1, or None.
        metadata: the entries that others go by, compared; or None.
        layers: its affine nodes, for L2.
        missing: by layer of evidence, the reason for its absence.
    """

    model: onnx.ModelProto
    structure: StructureResult | None
    static: StaticResult | None
    metadata: MetadataResult | None
    layers: tuple[OwnLayer, ...]
    missing: Mapping[str, str]


def certify_file(
    model: onnx.ModelProto,
    reference: Reference | str | None,
    *,
    precision: PrecisionName = "float32",
) -> Candidate:
    """Return L0 and L1 of `model`, and its layers for L2.

    Without a reference there are layers only; `reference` may then say why there is none. Weights
    may be rounded to the type that `precision` claims, in any storage type; TF32 rounds them only
    as it computes.
    """
    layers = own_layers(model)
    if not isinstance(reference, Reference):
        why = reference or "the original network is not here"
        missing = dict.fromkeys(("structure", "static", "metadata"), why)
        return Candidate(
            model=model, structure=None, static=None, metadata=None, layers=layers, missing=missing
        )
    missing = {}
    metadata = _judge_metadata(model, reference)
    if metadata.unknown:
        missing["metadata"] = (
            f"the file states {', '.join(metadata.unknown)}, and the reference does not"
        )
    try:
        alignment = _aligned(model, reference, precision)
    except UnsupportedModelError as error:
        where = f" (`{error.where}`)" if error.where else ""
        missing["structure"] = missing["static"] = f"{error.what}{where}"
        return Candidate(
            model=model,
            structure=None,
            static=None,
            metadata=metadata,
            layers=layers,
            missing=missing,
        )
    structure = alignment.result
    dtype = precision if precision in ("float16", "bfloat16") else None
    static = judge_static(alignment.pairs, is_exact=reference.is_exact, dtype=dtype)
    if not structure.isomorphic:
        missing["structure"] = f"not shown to be the reference: {structure.differences[0]}"
        if structure.num_aligned < structure.num_layers:
            missing["static"] = (
                f"{structure.num_layers - structure.num_aligned} of {structure.num_layers} layers "
                "have no counterpart"
            )
        elif structure.passed and static.reasons:
            # Beside other operators another weight may be right: it is not shown to be wrong.
            missing["static"] = static.reasons[0]
        if structure.passed:
            static = dataclasses.replace(static, reasons=())
    return Candidate(
        model=model,
        structure=structure,
        static=static,
        metadata=metadata,
        layers=layers,
        missing=missing,
    )


def refuse_difference(written: onnx.ModelProto, before: onnx.ModelProto, opset: int) -> None:
    """Raise UnsupportedModelError unless two graphs are shown to be one function, number by number.

    Args:
        written: the candidate.
        before: the graph as it was.
        opset: of the candidate, for the message.
    """
    reference = Reference(model=before, bias_magnitudes={}, is_exact=False)
    shown = certify_file(written, reference)
    reasons = [shown.missing[layer] for layer in ("structure", "static") if layer in shown.missing]
    reasons += shown.static.reasons if shown.static is not None else ()
    if reasons:
        raise UnsupportedModelError(
            f"The model is not shown to be the same in opset {opset}: {reasons[0]}.",
            fix="keep its opset, or name another one",
        )


def _aligned(model: onnx.ModelProto, reference: Reference, precision: PrecisionName) -> Alignment:
    """Return the candidate beside the reference, for the input sizes that the candidate takes."""
    narrowest = precision if precision in ("float16", "bfloat16") else "float32"
    candidate = skeleton_of(model, narrowest=narrowest)
    shapes = [shape for shape, _ in candidate.inputs]
    stated = [len(v.type.tensor_type.shape.dim) for v in fed_inputs(reference.model)]
    try:
        expected = skeleton_of(
            reference.model,
            bias_magnitudes=reference.bias_magnitudes,
            shapes=shapes if stated == list(map(len, shapes)) else None,
        )
    except UnsupportedModelError as error:
        error.what = f"In the reference: {error.what}"
        raise
    alignment = align(expected, candidate)
    odd = [
        f"output {k} is {dtype}, of a network in {precision}"
        for k, dtype in enumerate(candidate.dtypes)
        if "float" in dtype and dtype not in ("float32", narrowest)
    ]
    if not odd:
        return alignment
    differences = (*alignment.result.differences, *odd)
    return replace(alignment, result=replace(alignment.result, differences=differences))


def _judge_metadata(model: onnx.ModelProto, reference: Reference) -> MetadataResult:
    """Return the comparison of the entries that `evaluate` and `predict` go by."""
    stated = {entry.key: entry.value for entry in model.metadata_props}
    judged = [key for key in JUDGED_METADATA if key in stated]
    unknown = [key for key in judged if key not in reference.metadata]
    reasons = [
        f"the file's {key} is not the reference's"
        for key in judged
        if key in reference.metadata and _json(stated[key]) != _json(reference.metadata[key])
    ]
    return MetadataResult(
        judged=tuple(key for key in judged if key not in unknown),
        unknown=tuple(unknown),
        reasons=tuple(reasons),
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


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
    if not candidate.layers:
        return judge_nodes((), num_inputs=0), None
    types = {layer.affine.dtype for layer in candidate.layers}
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
    file_layers = ("structure", "static", "metadata")
    missing = {k: v for k, v in report.missing.items() if k not in file_layers}
    missing |= {k: v for k, v in candidate.missing.items() if k in file_layers}
    certified = replace(
        report,
        verdicts=tuple(verdicts),
        structure=candidate.structure,
        static=candidate.static,
        metadata=candidate.metadata,
        missing=missing,
    )
    return certified, faults
