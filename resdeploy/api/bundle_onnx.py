"""The parts of a bundle for an ONNX file from elsewhere: no trained model, no torch.

Without another reference the file is its own: its graph, computed in float64, gives the golden
outputs. A check then proves that a machine computes what the file says; that the file is the
network which was trained is not shown, and the manifest says so.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy.api.arguments import Source, model_of, source_spec
from resdeploy.api.sources import form_of, reference_of_onnx
from resdeploy.errors import ResdeployError
from resdeploy.schema.exports import ExportReport
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.recipes import DataSpec, Preprocess, SourceSpec
from resdeploy.schema.sessions import SessionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.verify.certify import Reference
    from resdeploy.verify.golden_file import Golden

__all__ = ["Parts", "onnx_parts"]

_NUM_INPUTS = 32
_LARGEST_BYTES = 2_000_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Parts of a bundle, beside the model file.

    Attributes:
        golden: inputs, their float64 outputs, the noise.
        reference: the graph to prove the file by; or the reason for its absence.
        inputs, outputs: of the model.
        labels: the names of its classes, or ().
        preprocess: from a raw sample to an input; None where that is not known.
        export: of a file that was exported, the record.
        is_own_reference: True if the file itself was computed in float64.
        where: the model, in words.
    """

    golden: "Golden"
    reference: "Reference | str"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    export: ExportReport | None = None
    is_own_reference: bool = False
    where: str


def onnx_parts(
    spec: SourceSpec,
    model: Path,
    *,
    reference: "Source | None" = None,
    data: DataSpec | None = None,
    num_inputs: int | None = None,
) -> Parts:
    """Copy the ONNX file that `spec` asks for to `model`, and return the parts of its bundle.

    The copy has its weights in it, as constants.

    Raises:
        ResdeployError: the file is none, or not what its reference computes; or a reference, a
            recipe or the data does not fit it.
        UnsupportedModelError: the reference has operators that cannot be computed in float64.
    """
    from resdeploy.bundle.evaluate import stated_records
    from resdeploy.data.usual_preprocess import says_preprocess
    from resdeploy.session.session import input_specs, open_session, output_specs
    from resdeploy.verify.outputs import judge_outputs

    path = Path(spec.path or "")
    if unfit := [name for name in ("arch", "options", "factory", "weights") if getattr(spec, name)]:
        raise ResdeployError(f"An ONNX file needs no {unfit[0]}.", where=str(path))
    _copy_whole(path, model)
    session = open_session(model, SessionSpec())
    inputs = input_specs(session)
    preprocess, labels = stated_records(session, where=str(path))
    if spec.labels is not None or says_preprocess(spec):
        raise ResdeployError(
            "An ONNX file takes its preprocessing and class names from a recipe.",
            where=str(path),
            fix="write a recipe.toml with [preprocess] and a labels.txt beside it: --recipe PATH",
        )
    if spec.recipe is not None:
        preprocess, labels = _of_recipe(spec.recipe, inputs[0], preprocess, labels)
    given, truth = _held_out(data, preprocess, num_inputs)
    golden, graph = _judge(spec, reference, given, num_inputs)
    golden = dataclasses.replace(golden, labels=truth)
    verdict = judge_outputs(model, golden, [SessionSpec()])
    if not verdict.passed:
        raise ResdeployError(
            "The file does not compute what its reference computes: "
            f"{'; '.join(verdict.verdicts[0].comparison.reasons)}.",
            where=str(path),
            fix="see what differs with resdeploy verify; a model in lower precision goes into the "
            "bundle of its float32 form, with resdeploy tune --variant",
        )
    return Parts(
        golden=golden,
        reference=graph,
        inputs=inputs,
        outputs=output_specs(session),
        labels=labels,
        preprocess=preprocess,
        is_own_reference=reference is None,
        where=path.name,
    )


def _judge(
    spec: SourceSpec,
    reference: "Source | None",
    given: "tuple[NDArray[Any], str] | None",
    num_inputs: int | None,
) -> "tuple[Golden, Reference | str]":
    """Return the golden outputs of the reference, and its graph or why there is none."""
    original: Source = spec if reference is None else reference
    request = source_spec(original)
    if request is not None and request.path and form_of(Path(request.path)) != "trained":
        request = dataclasses.replace(request, input_shape=spec.input_shape)
        return reference_of_onnx(request, num_inputs=num_inputs or _NUM_INPUTS, given=given)
    from resdeploy.export.golden import golden_for
    from resdeploy.export.reference import reference_or_reason

    trained = model_of(original, input_shape=spec.input_shape, name="reference")
    golden = golden_for(trained, given=given, num_inputs=num_inputs)
    return golden, reference_or_reason(trained, golden)


def _copy_whole(path: Path, model: Path) -> None:
    """Copy an ONNX file, with the weights beside it, byte for byte where it is whole already."""
    from resdeploy.graph.onnx_file import read_onnx

    file = read_onnx(path)
    if not file.is_external and not file.frozen:
        shutil.copyfile(path, model)
        return
    if sum(len(tensor.raw_data) for tensor in file.model.graph.initializer) > _LARGEST_BYTES:
        raise ResdeployError("A bundle holds models of at most 2 GB, in one file.", where=str(path))
    model.write_bytes(file.model.SerializeToString(deterministic=True))


def _of_recipe(
    name: str, tensor: TensorSpec, preprocess: Preprocess | None, labels: tuple[str, ...]
) -> tuple[Preprocess | None, tuple[str, ...]]:
    """Return the recipe's preprocessing and labels, in the layout of the model's input."""
    from resdeploy.data.preprocess import fed_shape
    from resdeploy.recipe import load_inputs

    found, named = load_inputs(name)
    labels = named or labels
    if found is None:
        return preprocess, labels
    stated = tensor.shape[1:]
    for layout in ("NCHW", "NHWC"):
        preprocess = dataclasses.replace(found, layout=layout)
        sizes = fed_shape(preprocess)
        if len(sizes) == len(stated) and all(
            not isinstance(known, int) or known == size
            for known, size in zip(stated, sizes, strict=True)
        ):
            return preprocess, labels
    raise ResdeployError(
        f"The recipe makes samples of shape {found.input_shape}; the model takes {stated}.",
        where=name,
        fix="name the recipe that the model was trained by, or a recipe.toml of your own",
    )


def _held_out(
    data: DataSpec | None, preprocess: Preprocess | None, num_inputs: int | None
) -> "tuple[tuple[NDArray[Any], str] | None, NDArray[Any] | None]":
    """Return the first held-out samples as inputs with their description, and their classes."""
    if data is None:
        return None, None
    from resdeploy.data.datasets import load_labelled
    from resdeploy.data.samples import inputs_from_raw

    samples = load_labelled(data, preprocess)
    inputs = inputs_from_raw(samples.x[:num_inputs], preprocess)
    truth = None if samples.y is None else samples.y[:num_inputs]
    return (inputs, f"the first {len(inputs)} samples of {samples.description}"), truth
