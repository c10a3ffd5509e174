"""`resdeploy.tune`: the fastest settings for a bundle, within a budget for its accuracy."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from resdeploy.api.arguments import (
    Data,
    OnProgress,
    PathLike,
    one_of,
    optional_data,
    optional_path,
    path_of,
    silent,
)
from resdeploy.api.sources import as_bundle
from resdeploy.errors import ResdeployError
from resdeploy.schema.quants import QuantizedPrecision
from resdeploy.schema.tunings import Objective, TuneReport, TuneSpec

__all__ = ["refuse_contradictions", "tune"]


def tune(
    bundle: PathLike,
    out: PathLike | None = None,
    *,
    max_drop: float | None = None,
    data: Data | None = None,
    calibration: Data | None = None,
    precisions: Sequence[QuantizedPrecision] = (),
    variants: Sequence[PathLike] = (),
    objective: Objective = "latency",
    providers: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    num_threads: Sequence[int] = (),
    num_runs: int = 100,
    work: PathLike | None = None,
    force: bool = False,
    on_progress: OnProgress = silent,
) -> TuneReport:
    """Find the fastest settings for a bundle on this machine.

    Args:
        bundle: a folder, or a `.zip`; or an ONNX file, which is bundled with itself as reference.
        out: the bundle to write, with the settings in it; None only to report.
        max_drop: the largest drop in accuracy, as a fraction, shown on `data`; None is lossless:
            a candidate's outputs must pass verification as float32.
        data: labelled samples for `max_drop`.
        calibration: samples to make lower precisions of the model with.
        precisions: those to make; by default int8, and float16 where a provider computes in it.
        variants: other forms of the model, as from `quantize`.
        objective: the figure to optimise.
        providers: where to run; by default all that start here.
        batch_sizes: samples of one run; several for the objective "throughput" alone.
        num_threads: numbers to try; by default ONNX Runtime's choice, 1, and all CPUs.
        num_runs: of each process, at most.
        work: a folder for results: a stopped search goes on from there.
        force: replace an existing bundle.
        on_progress: called with the steps done, their total or None, and the stage.

    Returns:
        The record; `.settings` is the winner, `.comparison` its time against the defaults.

    Raises:
        ResdeployError: arguments contradict each other, or a file is not what it should be.
        EnvironmentLacksError: not even the provider's defaults run here.

    Example:
        >>> resdeploy.tune("parts.zip", "tuned").settings.session
        SessionSpec(provider='cpu', num_threads=4, ...)
    """
    path, output = path_of(bundle, "bundle"), optional_path(out, "out")
    folder = optional_path(work, "work")
    files = [path_of(one, "variants") for one in variants]
    one_of(objective, "objective", get_args(Objective))
    for one in precisions:
        one_of(one, "precisions", get_args(QuantizedPrecision))
    judged_on, calibrated_on = optional_data(data), optional_data(calibration, "calibration")
    refuse_contradictions(max_drop, data, calibration, precisions, batch_sizes, objective)
    from resdeploy.bundle.archive import opened_bundle
    from resdeploy.bundle.folder import MANIFEST, write_tuned
    from resdeploy.data.datasets import load_labelled
    from resdeploy.files import refuse_existing_directory
    from resdeploy.machine.environment import read_environment
    from resdeploy.machine.probe import starting_providers
    from resdeploy.tune.journal import Journal, identity_of
    from resdeploy.tune.search import tune as search
    from resdeploy.tune.space import read_variants

    if output is not None:
        refuse_existing_directory(output, force=force, marker=MANIFEST)
    environment = read_environment()
    spec = TuneSpec(
        objective=objective,
        max_drop=max_drop,
        providers=tuple(providers) or starting_providers(),
        batch_sizes=tuple(batch_sizes),
        threads=tuple(num_threads) or (None, *sorted({1, environment.num_cpus_allowed})),
        num_runs=num_runs,
    )
    known = read_variants(files)
    with (
        as_bundle(path) as folder_or_archive,
        opened_bundle(folder_or_archive) as opened,
        tempfile.TemporaryDirectory(prefix="resdeploy-") as temporary,
    ):
        journal, made = Journal(), Path(temporary)
        if folder is not None:
            identity = identity_of(
                opened,
                spec,
                environment,
                variants=files,
                precisions=precisions,
                data={"data": judged_on, "calibration": calibrated_on},
            )
            journal, made = Journal.open(folder, identity), folder / "made"
            made.mkdir(exist_ok=True)
        if calibrated_on is not None:
            from resdeploy.tune.variants import make_variants, precisions_for

            known += make_variants(
                opened,
                made,
                spec,
                calibrated_on,
                precisions=precisions or precisions_for(spec.providers),
                on_stage=lambda stage: on_progress(0, None, stage),
            )
        report = search(
            opened,
            spec,
            known,
            load=None if judged_on is None else lambda p: load_labelled(judged_on, p),
            journal=journal,
            on_progress=on_progress,
        )
        if output is not None:
            by_name = {one.path.name: one.path for one in known}
            model = by_name.get(report.settings.model, opened.model)
            write_tuned(opened, output, [(report.settings, model)], force=force)
    return report


def refuse_contradictions(
    max_drop: float | None,
    data: Data | None,
    calibration: Data | None,
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    objective: Objective,
) -> None:
    """Raise ResdeployError if arguments of `tune`, here or on devices, contradict each other."""
    if (max_drop is None) != (data is None):
        raise ResdeployError("A largest drop and the data to show it on go together.")
    if calibration is not None and max_drop is None:
        raise ResdeployError("Lower precisions are not lossless: say which drop is allowed.")
    if precisions and calibration is None:
        raise ResdeployError("Lower precisions need calibration samples to be made with.")
    if len(batch_sizes) > 1 and objective != "throughput":
        raise ResdeployError("Several batch sizes can be compared by the throughput alone.")
