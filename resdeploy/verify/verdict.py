"""The full verdict on a model file, L0 to L3, put together from its evidence.

`outputs` judges the outputs, `certify` wiring, weights and layers. `resdeploy.verify`, the
self-test and the benchmarks all come here. Needs no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from resdeploy.files import sha256_file
from resdeploy.graph.onnx_file import load_onnx
from resdeploy.schema.sessions import PrecisionName, SessionSpec
from resdeploy.schema.verdicts import Accepts, FileProof, VerifyReport
from resdeploy.session.session import Session, open_session
from resdeploy.verify.certify import Reference, add_certificate, certify_file, certify_run
from resdeploy.verify.fault_file import write_fault
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.outputs import judge_session_outputs
from resdeploy.verify.run_layers import Run

__all__ = ["judge_model", "prove_file"]


def judge_model(
    model: Path,
    original: Reference | str,
    golden: Golden,
    sessions: Sequence[Session],
    *,
    precision: PrecisionName = "float32",
    conformance: bool = True,
    accepts: Accepts = "proof",
    artifacts: Path | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_fault: Callable[[str, Path], None] = lambda provider, path: None,
) -> VerifyReport:
    """Return the full verdict on `model`: its wiring, weights, layers, outputs and conformance.

    Args:
        model: an ONNX file.
        original: the reference graph; or why there is none, and outputs and layers alone can be
            judged.
        golden: inputs, float64 reference outputs of `original` and the noise of float32.
        sessions: open sessions of `model`.
        precision: the arithmetic it is said to compute in.
        conformance: whether to call each session in other ways too.
        accepts: the least that passes.
        artifacts: the folder to write the first faulty node of each provider to.
        on_stage: told the name of each stage.
        on_fault: told the provider of a faulty node, and the file it was written to.

    Raises:
        ResdeployError: the model is not the network of the reference (shapes differ), cannot be
            read or run; or `artifacts` cannot be written.
    """
    on_stage("run")
    report = judge_session_outputs(
        model, golden, sessions, precision=precision, conformance=conformance
    )
    on_stage("certify weights and nodes")
    proto = load_onnx(model)
    candidate = certify_file(proto, original, precision=precision)
    report, faults = add_certificate(report, candidate, golden.inputs, _run_on, precision=precision)
    if artifacts is not None:
        for provider, fault in faults.items():
            on_fault(provider, write_fault(artifacts / provider, fault, proto))
    return replace(report, accepts=accepts)


def prove_file(model: Path, original: Reference | str, golden: Golden) -> FileProof:
    """Return the proof of a model file, its layers run on the CPU.

    Raises:
        ResdeployError: the model cannot be read or run.
    """
    spec = SessionSpec()
    candidate = certify_file(load_onnx(model), original)
    outcome = certify_run(candidate, golden.inputs, _run_on(replace(spec, graph_level="extended")))
    unproved = [f"{what}: {why}" for what, why in candidate.missing.items()]
    if isinstance(outcome, str):
        unproved.append(f"node_local: {outcome}")
    else:
        unproved += outcome[0].reasons
    for one in (candidate.static, candidate.metadata):
        unproved += one.reasons if one is not None else ()
    return FileProof(
        sha256=sha256_file(model),
        structure=candidate.structure,
        static=candidate.static,
        metadata=candidate.metadata,
        unproved=tuple(unproved),
    )


def _run_on(spec: SessionSpec) -> Run:
    return lambda model, inputs: open_session(model, spec).run(inputs)
