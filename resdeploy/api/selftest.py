"""Planted faults in the user's own model, and the layers of evidence that catch each.

A verdict is worth the faults it catches. The model is exported, then each fault of
`resdeploy.verify.faults` is planted into a copy, which goes through the user's verification; the
verdicts of fixed tolerances stand beside it.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from resdeploy.api.arguments import OnStage, Source, model_of, silent, source_spec
from resdeploy.api.fold_onnx import fold_file
from resdeploy.api.sources import as_onnx, form_of, reference_of_onnx
from resdeploy.errors import ResdeployError
from resdeploy.export.export import export_onnx
from resdeploy.export.golden import golden_for, run_module
from resdeploy.export.reference import reference_graph
from resdeploy.fold import algebra
from resdeploy.graph.onnx_file import load_onnx
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import PlantedAttack, PlantedFault, SelftestReport, VerifyReport
from resdeploy.session.run import run_session
from resdeploy.session.session import open_session
from resdeploy.verify.certify import Reference
from resdeploy.verify.faults import CONTROLS, FAULTS, UnfoldedLayer, Workpiece
from resdeploy.verify.faults.attacks import ATTACKS
from resdeploy.verify.fixed_tolerance import FIXED_TOLERANCES
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.verdict import judge_model

__all__ = ["folded_layers", "selftest"]


def selftest(
    source: Source,
    *,
    num_inputs: int,
    attack: bool = False,
    num_threads: int | None = None,
    on_stage: OnStage = silent,
) -> SelftestReport:
    """Return the outcome of every fault that can be planted into `source`.

    Each faulty model is run on `num_inputs` seeded inputs, in a session of `num_threads`; `attack`
    plants back doors as well.

    Raises:
        ResdeployError: the model cannot be exported or is itself not finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        request = source_spec(source)
        make = _of_module
        if request is not None and request.path and form_of(Path(request.path)) != "trained":
            make = _of_file
        piece = make(source, path, num_inputs, on_stage)
        golden, reference, own, work = piece.golden, piece.reference, piece.own, piece.work

        def judge(faulty: onnx.ModelProto) -> tuple[VerifyReport, np.ndarray] | None:
            path.write_bytes(faulty.SerializeToString())
            try:
                session = open_session(path, SessionSpec(num_threads=num_threads))
                # As a file it is one and the same in every way to call it.
                verdict = judge_model(path, reference, golden, [session], conformance=False)
                return verdict, run_session(session, golden.inputs)
            except ResdeployError:  # it cannot be run, or has outputs of another shape
                return None

        outcomes: dict[str, PlantedFault] = {}
        for fault in (*CONTROLS, *FAULTS):
            on_stage(fault.name)
            if (faulty := fault.plant(work)) is not None:
                layer = work.target.node if fault.single_layer and work.target else None
                outcomes[fault.name] = _outcome(fault.name, layer, judge(faulty), own)
        attacks = []
        for fault in ATTACKS if attack else ():
            on_stage(fault.name)
            if (faulty := fault.plant(work)) is not None:
                attacks.append(_attacked(fault.name, judge(faulty)))
    return SelftestReport(
        model=piece.description,
        num_inputs=num_inputs,
        faults=tuple(outcomes[fault.name] for fault in FAULTS if fault.name in outcomes),
        controls=tuple(outcomes[fault.name] for fault in CONTROLS if fault.name in outcomes),
        not_applicable=tuple(fault.name for fault in FAULTS if fault.name not in outcomes),
        tolerances=tuple(FIXED_TOLERANCES),
        attacks=tuple(attacks),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Piece:
    """A correct model to plant faults in, with what it is judged by.

    Attributes:
        description: in words.
        golden, reference: its own, in float64.
        own: its outputs in float32, (N, K).
        work: its graph and its folded layers.
    """

    description: str
    golden: Golden
    reference: Reference
    own: np.ndarray
    work: Workpiece


def _of_module(source: Source, path: Path, num_inputs: int, on_stage: OnStage) -> _Piece:
    """Return a trained model, exported to `path`."""
    on_stage("float64 reference")
    model = model_of(source)
    golden = golden_for(model, num_inputs=num_inputs)
    reference = reference_graph(model, golden)
    own = run_module(model.module, golden.inputs, dtype=torch.float32)
    on_stage("export")
    report = export_onnx(model, ExportSpec(), path, golden=golden)
    graph = load_onnx(path)
    layers = folded_layers(model.module, report.fold or FoldReport(), graph)
    return _Piece(
        description=model.description,
        golden=golden,
        reference=reference,
        own=own,
        work=Workpiece(model=graph, layers=layers),
    )


def _of_file(source: Source, path: Path, num_inputs: int, on_stage: OnStage) -> _Piece:
    """Return an ONNX file, folded to `path`."""
    request = source_spec(source)
    assert request is not None
    on_stage("float64 reference")
    golden, reference = reference_of_onnx(request, num_inputs=num_inputs)
    on_stage("fold")
    with as_onnx(Path(request.path or "")) as file:
        report = fold_file(file, path, input_shape=request.input_shape)
        own = run_session(open_session(file, SessionSpec()), golden.inputs)
        layers = _layers_of_file(load_onnx(file), report)
    return _Piece(
        description=Path(request.path or "").name,
        golden=golden,
        reference=reference,
        own=own,
        work=Workpiece(model=load_onnx(path), layers=layers),
    )


def _layers_of_file(model: onnx.ModelProto, report: FoldReport) -> tuple[UnfoldedLayer, ...]:
    """Return the layers of an ONNX file into which one BatchNormalization each was folded."""
    nodes = {node.name: node for node in model.graph.node}
    numbers = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    producers = [site.producer for site in report.folded]
    layers = []
    for site in report.folded:
        layer, norm = nodes.get(site.producer), nodes.get(site.site)
        if layer is None or norm is None or norm.op_type != "BatchNormalization":
            continue
        is_one = producers.count(site.producer) == 1 and layer.op_type == "Conv"
        if not is_one or not numbers.keys() >= {*layer.input[1:], *norm.input[1:]}:
            continue
        gamma, beta, mean, var = (numbers[name] for name in norm.input[1:5])
        eps = next((one.f for one in norm.attribute if one.name == "epsilon"), 1e-5)
        layers.append(
            UnfoldedLayer(
                node=layer.name,
                weight=numbers[layer.input[1]],
                bias=numbers[layer.input[2]] if len(layer.input) > 2 else None,
                bn=algebra.BatchNormParams(gamma=gamma, beta=beta, mean=mean, var=var, eps=eps),
            )
        )
    return tuple(layers)


def _attacked(name: str, judged: tuple[VerifyReport, np.ndarray] | None) -> PlantedAttack:
    """Return the outcome of a back door."""
    if judged is None:
        return PlantedAttack(name=name, verdict="FAIL", found="it cannot be run", ran=False)
    report, _ = judged
    reasons = [*report.reasons, *(r for v in report.verdicts for r in v.reasons), *report.unproved]
    found = reasons[0] if reasons else ""
    return PlantedAttack(name=name, verdict=report.verdict, found=found, ran=True)


def _outcome(
    name: str, layer: str | None, judged: tuple[VerifyReport, np.ndarray] | None, own: np.ndarray
) -> PlantedFault:
    """Return the outcome of a fault; `own` are the outputs of PyTorch's float32."""
    if judged is None:
        return PlantedFault(
            name=name, layer=layer, caught_by=("end_to_end",), named=None, accepted_by=()
        )
    report, outputs_NK = judged
    (verdict,) = report.verdicts
    layers = {
        "structure": report.structure,
        "static": report.static,
        "node_local": verdict.node_local,
        "end_to_end": verdict.comparison,
    }
    reasons = (
        *report.reasons,
        *report.missing.values(),
        *(verdict.node_local.reasons if verdict.node_local else ()),
    )
    return PlantedFault(
        name=name,
        layer=layer,
        caught_by=tuple(
            n
            for n, one in layers.items()
            if n in report.missing or (one is not None and not one.passed)
        ),
        named=next((reason.split("`")[1] for reason in reasons if "`" in reason), None),
        accepted_by=tuple(n for n, accepts in FIXED_TOLERANCES.items() if accepts(outputs_NK, own)),
    )


def folded_layers(
    module: nn.Module, report: FoldReport, model: onnx.ModelProto
) -> tuple[UnfoldedLayer, ...]:
    """Return the layers into which one BatchNorm each was folded, before the fold."""
    nodes = {node.input[1]: node.name for node in model.graph.node if len(node.input) > 2}
    producers = [site.producer for site in report.folded]
    layers = []
    for site in report.folded:
        node = nodes.get(f"{site.producer}.weight")
        if node is not None and producers.count(site.producer) == 1:
            layer, norm = module.get_submodule(site.producer), module.get_submodule(site.site)
            layers.append(_before_the_fold(node, layer, norm))
    return tuple(found for found in layers if found is not None)


def _before_the_fold(node: str, layer: nn.Module, norm: nn.Module) -> UnfoldedLayer | None:
    def array(value: Any) -> np.ndarray | None:
        return None if value is None else value.detach().numpy()

    is_plain = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    if not is_plain or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return None
    weight, mean, var = array(layer.weight), array(norm.running_mean), array(norm.running_var)
    if weight is None or mean is None or var is None:
        return None
    bn = algebra.BatchNormParams(
        gamma=array(norm.weight), beta=array(norm.bias), mean=mean, var=var, eps=norm.eps
    )
    return UnfoldedLayer(node=node, weight=weight, bias=array(layer.bias), bn=bn)
