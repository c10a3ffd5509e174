"""`resdeploy.ship`: from a checkpoint to a bundle for the device, by the other verbs in turn."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from resdeploy.api.arguments import (
    Data,
    OnStage,
    PathLike,
    Source,
    export_spec,
    one_of,
    optional_data,
    optional_path,
    path_of,
    silent,
    source_spec,
)
from resdeploy.api.ship_run import BUDGET, CONFIDENCE, ShipRun
from resdeploy.errors import ResdeployError
from resdeploy.schema.quants import QuantizedPrecision
from resdeploy.schema.ships import ShipReport, ShipSamples
from resdeploy.schema.verdicts import Accepts

if TYPE_CHECKING:
    from resdeploy.schema.files import SourceSpec
    from resdeploy.schema.recipes import DataSpec
    from resdeploy.ship.samples import SplitSamples

__all__ = ["ship", "work_folder"]


def ship(
    source: "Source",
    out: PathLike,
    *,
    input_shape: Sequence[int] | None = None,
    data: Data | None = None,
    max_drop: float | None = None,
    max_flips: float | None = None,
    precisions: Sequence[QuantizedPrecision] = (),
    providers: Sequence[str] = (),
    target: PathLike | None = None,
    accept: Accepts = "proof",
    work: PathLike | None = None,
    force: bool = False,
    on_stage: OnStage = silent,
    on_note: OnStage = silent,
) -> ShipReport:
    """Make of a trained model the bundle for a device: proved, small and fast within a budget.

    The other verbs, in turn: `bundle`, `verify`, `quantize`, `tune` and `check`. A lower precision
    is shipped only if it was shown to be within the budget and won the race; else the float32 model
    is, and the record says why.

    Args:
        source: a `Model`, a torch module in eval mode, or a checkpoint's path.
        out: the bundle to write: a folder, or one file, `NAME.zip`.
        input_shape: of one sample, without the batch; a module needs it.
        data: samples: a folder of images, best with a folder for each class, an `.npz`, or a data
            set such as "cifar10:PATH". Without, nothing but float32 is tried.
        max_drop: the largest drop in accuracy, as a fraction; 0.01 where the samples are labelled.
        max_flips: the largest fraction of predictions that may change, for samples without labels;
            by default 0.01.
        precisions: those to make; by default int8, and float16 where a provider computes in it.
        providers: where to run; by default all that start here.
        target: as of `export`.
        accept: as of `verify`.
        work: the folder with the finished stages, from which a run that was stopped goes on; by
            default beside `out`. It is removed at the end.
        force: replace an existing bundle.
        on_stage: called with the name of each stage as it begins.
        on_note: called with a line for each thing that was found, and with the time that it takes.

    Returns:
        The record; `.passed` is the verdict of `check` on the bundle that was written, `.reasons`
        say why no lower precision is shipped, `.commands` are those for the device.

    Raises:
        ResdeployError: a file is missing or not what it should be, arguments contradict each
            other, or the exported model was not proved to be the trained one.
        UnsupportedModelError: the model cannot be exported.
        EnvironmentLacksError: a provider does not start.

    Example:
        >>> report = resdeploy.ship(
        ...     "last.ckpt", "parts.zip", data="photos", max_drop=0.005
        ... )
        >>> report.tuning.settings.model, report.commands[0]
        ('int8.onnx', 'resdeploy check parts.zip --digest 3f2a…')
    """
    path = path_of(out, "out")
    chosen, probe = optional_data(data), optional_path(target, "target")
    folder = optional_path(work, "work") or work_folder(path)
    for one in precisions:
        one_of(one, "precisions", get_args(QuantizedPrecision))
    one_of(accept, "accept", get_args(Accepts))
    _refuse_contradictions(chosen, max_drop, max_flips, precisions)
    request = source_spec(source, input_shape)
    from resdeploy.bundle.archive import is_archive
    from resdeploy.bundle.folder import MANIFEST
    from resdeploy.files import (
        refuse_existing_directory,
        refuse_existing_file,
        refuse_missing_parent,
    )
    from resdeploy.ship.samples import read_samples_of, split_by_content
    from resdeploy.ship.stages import Stages

    refuse_missing_parent(path)
    export_spec(batch="dynamic", fold=True, opset=None, target=probe)
    if is_archive(path):
        refuse_existing_file(path, force=force)
    else:
        refuse_existing_directory(path, force=force, marker=MANIFEST)
    origin = _origin_of(request)
    split, samples, budget = None, None, None
    if chosen is not None:
        where = chosen.path or chosen.name
        split = split_by_content(read_samples_of(chosen), where=where)
        budget = _budget_for(split, max_drop, max_flips, where=where)
        samples = _described(chosen, split, budget)
    stages = Stages(folder)
    run = ShipRun(
        source=source if request is None else request,
        input_shape=input_shape,
        origin=origin,
        name=path.stem if is_archive(path) else path.absolute().name,
        data=chosen,
        split=split,
        samples=samples,
        budget=budget,
        precisions=tuple(precisions),
        providers=tuple(providers),
        target=probe,
        accept=accept,
        stages=stages,
        on_stage=on_stage,
        on_note=on_note,
    )
    report = run.to(path, force=force)
    stages.remove()
    return report


def work_folder(out: Path) -> Path:
    """Return the folder for the finished stages of a bundle `out`, if none is given."""
    return out.absolute().with_name(f"{out.name}.work")


def _refuse_contradictions(
    data: "DataSpec | None",
    max_drop: float | None,
    max_flips: float | None,
    precisions: Sequence[str],
) -> None:
    if data is None and (max_drop is not None or max_flips is not None):
        raise ResdeployError("A budget needs samples to show it on.", fix="name them with --data")
    if data is None and precisions:
        raise ResdeployError(
            "A lower precision needs samples to be made and judged with.",
            fix="name them with --data",
        )
    if max_drop is not None and max_flips is not None:
        raise ResdeployError(
            "A largest drop is for samples with labels, changed predictions for those without.",
            fix="give one of --max-drop and --max-flips",
        )
    for name, value in (("max_drop", max_drop), ("max_flips", max_flips)):
        if value is not None and not 0 < value <= 1:
            raise ResdeployError(
                f"No number of samples shows {name} = {value}: it is a fraction above 0.",
                fix="leave --data out, and nothing but float32 is tried",
            )


def _origin_of(request: "SourceSpec | None") -> Mapping[str, Any] | None:
    """Return the content that a request stands for; None for code, whose content is not known.

    Raises:
        ResdeployError: a file is missing.
    """
    from resdeploy.ship.stages import content_digest

    if request is None:
        return None
    if request.path is not None and not Path(request.path).exists():
        raise ResdeployError("There is no such file.", where=request.path)
    if request.factory is not None:
        return None
    if request.path is None:
        raise ResdeployError(
            "No model was given.", fix="give a checkpoint, or --model package.module:function"
        )
    found: dict[str, Any] = {"request": dataclasses.replace(request, path=None)}
    for name in (request.path, request.recipe, request.labels):
        if name is not None and Path(name).exists():
            found[Path(name).name] = (
                content_digest(Path(name))
                if Path(name).is_file() or name == request.path
                else sorted(one.name for one in Path(name).iterdir())
            )
    return found


def _budget_for(
    split: "SplitSamples", max_drop: float | None, max_flips: float | None, *, where: str
) -> float:
    is_labelled = bool(split.labels)
    if max_drop is not None and not is_labelled:
        raise ResdeployError(
            "The samples have no labels: a drop in accuracy cannot be judged on them.",
            where=where,
            fix="give --max-flips, or a folder of images for each class",
        )
    if max_flips is not None and is_labelled:
        raise ResdeployError(
            "The samples have labels, by which accuracy is judged.",
            where=where,
            fix="give --max-drop",
        )
    given = max_drop if is_labelled else max_flips
    return BUDGET if given is None else given


def _described(data: "DataSpec", split: "SplitSamples", budget: float) -> ShipSamples:
    from resdeploy.statistics.proportions import fewest_samples

    return ShipSamples(
        source=data.name if data.path is None else Path(data.path).name,
        num_calibration=len(split.calibration),
        num_held_out=len(split.held_out),
        is_labelled=bool(split.labels),
        num_copies=split.num_copies,
        num_needed=fewest_samples(budget, confidence=CONFIDENCE),
    )
