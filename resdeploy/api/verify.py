"""`resdeploy.verify`: the proof that a model file computes what the trained model computes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from resdeploy.api.arguments import (
    Data,
    OnStage,
    PathLike,
    Providers,
    Source,
    is_onnx,
    is_path,
    model_of,
    one_of,
    optional_data,
    optional_path,
    path_of,
    sessions_of,
    silent,
    source_spec,
)
from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import SourceSpec
from resdeploy.schema.sessions import PrecisionName, SessionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.export.source import SourceModel
    from resdeploy.schema.recipes import Preprocess
    from resdeploy.schema.verdicts import Accepts, VerifyReport
    from resdeploy.session.session import Session
    from resdeploy.verify.certify import Reference
    from resdeploy.verify.golden_file import Golden

__all__ = ["verify"]

_NUM_INPUTS = 32


def verify(
    model: PathLike,
    reference: "Source | None" = None,
    *,
    golden: PathLike | None = None,
    input_shape: Sequence[int] | None = None,
    data: Data | None = None,
    inputs: "PathLike | NDArray[Any] | None" = None,
    num_inputs: int | None = None,
    provider: Providers = "cpu",
    precision: PrecisionName = "float32",
    conformance: bool = True,
    accept: "Accepts" = "proof",
    artifacts: PathLike | None = None,
    on_stage: OnStage = silent,
    on_fault: Callable[[str, Path], None] = silent,
) -> "VerifyReport":
    """Prove that an ONNX file computes, on each provider, what the reference does in float64.

    Args:
        model: an ONNX file with one input.
        reference: the trained model: a `Model`, a torch module in eval mode, a checkpoint's path;
            or another ONNX file's.
        golden: a golden.npz instead. It holds outputs only, so that wiring, weights and layers
            cannot be judged: the verdict is AGREES at best. Needs no torch.
        input_shape: of one sample of a torch module; by default that of `model`.
        data: verify on held-out samples of this data set, such as "cifar10:PATH".
        inputs: verify on these: a folder or file, or an array (N, ...) of raw samples or float32
            network inputs.
        num_inputs: number of inputs; by default 32 seeded ones, or all of `data` or `inputs`.
        provider: where to run: names, or `SessionSpec`s.
        precision: the claimed arithmetic of `model`, by whose noise it is judged.
        conformance: also compare batch sizes, graph levels and odd values.
        accept: "outputs" lets AGREES pass, too: a file whose graph was not shown to be the
            reference's, such as with `golden`.
        artifacts: a folder for the first faulty node of each provider, with its inputs.
        on_stage: called with the name of each stage as it begins.
        on_fault: called with the provider and the file of each artifact.

    Returns:
        The record; `.verdict` is PROVED, AGREES or FAIL, `.passed` whether that is enough,
        `.reasons` and each of `.verdicts` have the reasons, `.unproved` what was not shown.

    Raises:
        ResdeployError: arguments contradict each other, a file is not what it should be, or `model`
            has inputs or outputs of other shapes than the reference.
        ProviderError: a provider did not start.
        TypeError, ValueError: an argument is of another kind; the message names it.

    Example:
        >>> report = resdeploy.verify("resnet50.onnx", reference=model)
        >>> report.passed, report.static.max_ulp
        (True, 0.4999)
    """
    path = path_of(model, "model")
    specs = sessions_of(provider)
    one_of(precision, "precision", get_args(PrecisionName)[:4])
    one_of(accept, "accept", ("proof", "outputs"))
    folder = optional_path(artifacts, "artifacts")
    request = source_spec(reference, input_shape)
    _refuse_contradictions(golden, reference, request, data, inputs, num_inputs)
    chosen = optional_data(data)
    from resdeploy.verify.outputs import judge_session_outputs, open_sessions

    on_stage("open sessions")
    # Before the reference, which takes longer: a provider that does not start ends it here.
    sessions = open_sessions(path, specs)
    on_stage("float64 reference")
    if golden is not None:
        from resdeploy.verify.golden_file import load_golden

        answers = load_golden(path_of(golden, "golden"))
        on_stage("run")
        report = judge_session_outputs(
            path, answers, sessions, precision=precision, conformance=conformance
        )
        return replace(report, accepts=accept)
    original: Reference | str
    if request is not None and is_onnx(request):
        _refuse_another_file(sessions[0], path_of(request.path, "reference"))
        answers, original = _from_onnx(request, specs[0], inputs, num_inputs)
    else:
        from resdeploy.export.golden import golden_for
        from resdeploy.export.reference import reference_or_reason
        from resdeploy.export.same_network import refuse_another_network

        source = _source_for(sessions[0], reference, input_shape)
        refuse_another_network(sessions[0], source)
        given = _given(inputs, source.preprocess, num_inputs)
        answers = golden_for(source, data=chosen, given=given, num_inputs=num_inputs)
        original = reference_or_reason(source, answers)
    from resdeploy.verify.verdict import judge_model

    return judge_model(
        path,
        original,
        answers,
        sessions,
        precision=precision,
        conformance=conformance,
        accepts=accept,
        artifacts=folder,
        on_stage=on_stage,
        on_fault=on_fault,
    )


def _refuse_contradictions(
    golden: object,
    reference: object,
    request: SourceSpec | None,
    data: object,
    inputs: object,
    num_inputs: int | None,
) -> None:
    if golden is None and reference is None:
        raise ResdeployError(
            "There is nothing to verify against.",
            fix="give the trained model as the reference, or a golden file",
        )
    others = (reference, data, inputs, num_inputs)
    if golden is not None and any(other is not None for other in others):
        raise ResdeployError("A golden file has its own inputs and reference: give it alone.")
    if data is not None and inputs is not None:
        raise ResdeployError("data and inputs each say what to verify on: give one.")
    if request is None or not is_onnx(request):
        return
    if data or request != SourceSpec(path=request.path):
        raise ResdeployError(
            "An ONNX reference takes given or seeded inputs, and no options of a trained model.",
            where=request.path,
        )


def _from_onnx(
    request: SourceSpec, session: SessionSpec, inputs: object, num_inputs: int | None
) -> "tuple[Golden, Reference]":
    from resdeploy.session.session import open_session
    from resdeploy.verify.reference_file import load_reference

    as_it_stands = SessionSpec(graph_level="disabled", num_threads=session.num_threads)
    return load_reference(
        path_of(request.path, "reference"),
        num_inputs=num_inputs or _NUM_INPUTS,
        given=_given(inputs, None, num_inputs),
        open_model=lambda model: open_session(model, as_it_stands).run,
    )


def _source_for(
    session: "Session", reference: Any, input_shape: Sequence[int] | None
) -> "SourceModel":
    """Return the reference, as a model of pixels where the candidate is one."""
    from resdeploy.data.input_kinds import FLOATS, KINDS
    from resdeploy.data.preprocess import kind_for
    from resdeploy.session.session import input_specs

    tensor = input_specs(session)[0]
    sizes = tuple(size for size in tensor.shape[1:] if isinstance(size, int))
    if input_shape is None and len(sizes) == len(tensor.shape[1:]):
        input_shape = sizes
    shape = input_shape if source_spec(reference) is None else None
    source = model_of(reference, input_shape=shape, name="reference")
    if KINDS.get(tensor.dtype, FLOATS).is_raw and not kind_for(source.preprocess).is_raw:
        from resdeploy.export.embedded import embed_preprocess

        return embed_preprocess(source)
    return source


def _refuse_another_file(session: "Session", reference: Path) -> None:
    """Refuse an ONNX file of other shapes than the session's, before its float64 outputs."""
    from resdeploy.session.session import input_specs, open_session, output_specs
    from resdeploy.verify.same_shapes import refuse_other_shapes

    other = open_session(reference, SessionSpec(graph_level="disabled"))
    for kind, specs in (("input", input_specs), ("output", output_specs)):
        found, expected = ([one.shape for one in specs(of)] for of in (session, other))
        refuse_other_shapes(kind, found, expected, reference=reference.name)


def _given(
    inputs: Any, preprocess: "Preprocess | None", most: int | None
) -> "tuple[NDArray[Any], str] | None":
    """Return the given inputs with their description for the record; None without any."""
    if inputs is None:
        return None
    import numpy as np

    from resdeploy.data.samples import inputs_from_raw, read_inputs

    if is_path(inputs):
        path = path_of(inputs, "inputs")
        found: NDArray[Any] = read_inputs(path, preprocess, most=most)
        return found, f"{len(found)} inputs of {path.name}"
    if not hasattr(inputs, "__array__"):
        raise TypeError(f"inputs must be a path or an array, not {type(inputs).__name__}")
    raw = np.asarray(inputs)[:most]
    return inputs_from_raw(raw, preprocess), f"{len(raw)} given inputs"
