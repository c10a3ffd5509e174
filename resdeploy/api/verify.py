"""`resdeploy.verify`: the proof that a model file computes what the trained model computes."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from resdeploy.api.arguments import (
    Data,
    InputShape,
    OnStage,
    PathLike,
    Providers,
    Source,
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
from resdeploy.api.sources import as_onnx, form_of, reference_of_onnx
from resdeploy.errors import ResdeployError
from resdeploy.schema.files import IMAGE_SIDES, InputSpec, TensorSpec, stated_inputs
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
_NUM_OTHER_SIZE = 4


def verify(
    model: PathLike,
    reference: "Source | None" = None,
    *,
    golden: PathLike | None = None,
    input_shape: InputShape | None = None,
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
        model: an ONNX file, or a bundle, whose file is taken.
        reference: the trained model: a `Model`, a torch module in eval mode, a checkpoint's path;
            or the path of an ONNX file, of a bundle.
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
    specs = sessions_of(provider)
    one_of(precision, "precision", get_args(PrecisionName)[:4])
    one_of(accept, "accept", ("proof", "outputs"))
    folder = optional_path(artifacts, "artifacts")
    request = source_spec(reference, input_shape)
    _refuse_contradictions(golden, reference, request, data, inputs, num_inputs)
    chosen = optional_data(data)
    from resdeploy.verify.outputs import judge_session_outputs, open_sessions

    with contextlib.ExitStack() as stack:
        path = stack.enter_context(as_onnx(path_of(model, "model")))
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
        notes: tuple[str, ...] = ()
        elsewhere: Golden | None = None
        if request is not None and _is_file(request):
            file = stack.enter_context(as_onnx(path_of(request.path, "reference")))
            _refuse_another_file(sessions[0], file)
            answers, original = reference_of_onnx(
                replace(request, path=str(file)),
                num_inputs=num_inputs or _NUM_INPUTS,
                given=_given(inputs, None, num_inputs),
                num_threads=specs[0].num_threads,
            )
        else:
            from resdeploy.export.golden import golden_for
            from resdeploy.export.reference import reference_or_reason
            from resdeploy.export.same_network import refuse_another_network
            from resdeploy.export.source import of_another_size
            from resdeploy.session.run import fixed_batch

            source = _source_for(sessions[0], reference, input_shape)
            refuse_another_network(sessions[0], source)
            given = _given(inputs, source.preprocess, num_inputs, source.input_names)
            batch = fixed_batch(sessions[0])
            answers = golden_for(
                source, data=chosen, given=given, num_inputs=num_inputs, batch=batch
            )
            original = reference_or_reason(source, answers, batch=batch)
            notes = source.notes
            if source.open_sides:
                larger = of_another_size(source)
                elsewhere = golden_for(larger, num_inputs=_NUM_OTHER_SIZE, batch=batch)
        from resdeploy.verify.verdict import judge_model

        report = judge_model(
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
        report = replace(report, source=notes)
        if elsewhere is None:
            return report
        on_stage("another size")
        return _with_other_size(
            report, judge_session_outputs(path, elsewhere, sessions, precision=precision)
        )


def _is_file(request: SourceSpec) -> bool:
    """Return True for an ONNX file, or a bundle with one."""
    return request.path is not None and form_of(Path(request.path)) != "trained"


def _with_other_size(report: "VerifyReport", other: "VerifyReport") -> "VerifyReport":
    """Return a report with the reasons against the outputs for samples of another size."""
    verdicts = [
        replace(
            one,
            comparison=replace(
                one.comparison,
                reasons=(
                    *one.comparison.reasons,
                    *(f"{other.golden.inputs}: {why}" for why in beside.comparison.reasons),
                ),
            ),
        )
        for one, beside in zip(report.verdicts, other.verdicts, strict=True)
    ]
    return replace(report, verdicts=tuple(verdicts))


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
    if request is None or not _is_file(request):
        return
    if data or request != SourceSpec(path=request.path, input_shape=request.input_shape):
        raise ResdeployError(
            "An ONNX reference takes given or seeded inputs, and no options of a trained model.",
            where=request.path,
        )


def _source_for(
    session: "Session", reference: Any, input_shape: InputShape | None
) -> "SourceModel":
    """Return the reference, as a model of pixels where the candidate is one."""
    from resdeploy.data.input_kinds import FLOATS, KINDS
    from resdeploy.data.preprocess import kind_for
    from resdeploy.export.source import with_open_sides
    from resdeploy.session.session import input_specs

    tensors = input_specs(session)
    stated = input_shape or _stated(tensors)
    request = source_spec(reference)
    if request is not None and request.factory and not (request.input_shape or request.inputs):
        reference = replace(request, **stated_inputs(stated))
    shape = stated if request is None else None
    source = model_of(reference, input_shape=shape, name="reference")
    sides = [
        side
        for side, axis in IMAGE_SIDES.items()
        for one in tensors[:1]
        if len(one.shape) == len(IMAGE_SIDES) + 2 and not isinstance(one.shape[axis], int)
    ]
    if sides and (source.preprocess is None or not source.preprocess.embedded):
        source = with_open_sides(source, sides)
    is_raw = KINDS.get(tensors[0].dtype, FLOATS).is_raw if tensors else False
    if is_raw and not kind_for(source.preprocess).is_raw:
        from resdeploy.export.embedded import embed_preprocess

        return embed_preprocess(source)
    sizes = tuple(tensors[0].shape[1:]) if len(tensors) == 1 else ()
    if len(sizes) == 3 and sizes != source.input_shape == (sizes[2], *sizes[:2]):
        from resdeploy.export.channels_last import channels_last

        return channels_last(source)
    return source


def _stated(tensors: Sequence[TensorSpec]) -> "list[InputSpec] | None":
    """Return the inputs that a candidate states, without its batch; None where one is open."""
    from resdeploy.data.input_kinds import FLOATS, KINDS, PIXELS

    if not all(isinstance(size, int) for tensor in tensors for size in tensor.shape[1:]):
        return None
    return [
        InputSpec(
            name=tensor.name if len(tensors) > 1 else "",
            shape=tuple(size for size in tensor.shape[1:] if isinstance(size, int)),
            dtype="float32"
            if KINDS.get(tensor.dtype, FLOATS) in (FLOATS, PIXELS)
            else tensor.dtype,
        )
        for tensor in tensors
    ]


def _refuse_another_file(session: "Session", reference: Path) -> None:
    """Refuse an ONNX file of other shapes than the session's, before its float64 outputs."""
    from resdeploy.session.session import input_specs, open_session, output_specs
    from resdeploy.verify.same_shapes import refuse_other_shapes

    other = open_session(reference, SessionSpec(graph_level="disabled"))
    for kind, specs in (("input", input_specs), ("output", output_specs)):
        found, expected = ([one.shape for one in specs(of)] for of in (session, other))
        refuse_other_shapes(kind, found, expected, reference=reference.name)


def _given(
    inputs: Any,
    preprocess: "Preprocess | None",
    most: int | None,
    names: Sequence[str] = (),
) -> "tuple[NDArray[Any], str] | None":
    """Return the given inputs with their description for the record; None without any."""
    if inputs is None:
        return None
    import numpy as np

    from resdeploy.data.samples import inputs_from_raw, read_inputs, read_named

    if names:
        records = [record for _, record in read_named(inputs, names, most=most)]
        where = path_of(inputs, "inputs").name if is_path(inputs) else "given arrays"
        return np.stack(records), f"{len(records)} inputs of {where}"
    if is_path(inputs):
        path = path_of(inputs, "inputs")
        found: NDArray[Any] = read_inputs(path, preprocess, most=most)
        return found, f"{len(found)} inputs of {path.name}"
    if not hasattr(inputs, "__array__"):
        raise TypeError(f"inputs must be a path or an array, not {type(inputs).__name__}")
    raw = np.asarray(inputs)[:most]
    return inputs_from_raw(raw, preprocess), f"{len(raw)} given inputs"
