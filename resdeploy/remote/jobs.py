"""Remote jobs, one for each command: the files to copy to a device, and the commands to run."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resdeploy.api.arguments import optional_data
from resdeploy.api.tune import refuse_contradictions
from resdeploy.bundle.archive import is_archive, opened_bundle
from resdeploy.bundle.folder import MANIFEST, write_tuned
from resdeploy.errors import EnvironmentLacksError, ResdeployError
from resdeploy.files import refuse_existing_directory
from resdeploy.remote.fleet_run import DeviceCall, DeviceJob, FetchedFile
from resdeploy.schema.benchmarks import BenchComparison, BenchReport
from resdeploy.schema.bundles import CheckReport
from resdeploy.schema.machines import ProbeReport
from resdeploy.schema.recipes import DataSpec
from resdeploy.schema.remotes import RemoteReport
from resdeploy.schema.sessions import SESSION_OPTIONS
from resdeploy.schema.tunings import Objective, TuneReport

__all__ = ["Options", "bench_job", "check_job", "probe_job", "tune_job", "tune_on_devices"]

# Options of a command line, as (name, value), or (name,) for a flag.
Options = tuple[tuple[str, ...], ...]

# Files to copy, each with its name there, and the argument there for all of them.
_Copied = tuple[tuple[tuple[Path, str], ...], str]

_MODEL = "model.onnx"
_TUNED = "tuned"
# Options that the check before a benchmark takes too.
_ANSWERING = [option.flag for option in SESSION_OPTIONS.values() if option.changes_answers]


def check_job(bundle: Path, options: Options) -> DeviceJob:
    """Return the job of `resdeploy check`.

    Raises:
        BundleError: the bundle is not intact here, so that no device need be asked.
    """
    files, argument = _bundle_files(bundle)
    call = DeviceCall(command="check", record=CheckReport, arguments=(argument,), options=options)
    return DeviceJob(calls=(call,), files=files)


def bench_job(model: Path, options: Options, *, against: Path | None, compared: bool) -> DeviceJob:
    """Return the job of `resdeploy bench`; of a bundle, after its check in the same session.

    `model` is an ONNX file or a bundle; `options` are without those that name files here;
    `against` is the file that `--against` names; `compared` is True if the record is a comparison,
    with that or with another setting.

    Raises:
        ResdeployError: there is no such file, or the bundle is not intact.
    """
    is_bundle = model.is_dir() or is_archive(model)
    files, argument = _bundle_files(model) if is_bundle else _model_files(model, "model")
    # What was proved is the host's matter: here the outputs have to be right.
    session = tuple(option for option in options if option[0] in _ANSWERING)
    session += (("--accept", "outputs"),)
    check = DeviceCall(command="check", record=CheckReport, arguments=(argument,), options=session)
    if against is not None:
        other, other_argument = _model_files(against, "against")
        files, options = files + other, (*options, ("--against", other_argument))
    record = BenchComparison if compared else BenchReport
    bench = DeviceCall(command="bench", record=record, arguments=(argument,), options=options)
    return DeviceJob(calls=(check, bench) if is_bundle else (bench,), files=files)


def probe_job() -> DeviceJob:
    """Return the job of `resdeploy probe`."""
    return DeviceJob(calls=(DeviceCall(command="probe", record=ProbeReport),))


def tune_job(
    bundle: Path,
    options: Options,
    *,
    variants: Sequence[Path],
    data: DataSpec | None,
    calibration: DataSpec | None,
    folder: Path,
) -> DeviceJob:
    """Return the job of `resdeploy tune`; the winner's file is fetched if it was made there.

    Fetched files go to `folder`, each into a folder with the number of its device.
    """
    files, argument = _bundle_files(bundle)
    for path in variants:
        found, there = _model_files(path, "variants")
        files, options = files + found, (*options, ("--variant", there))
    for name, spec in (("--data", data), ("--calibration", calibration)):
        if spec is not None:
            found, there = _data_files(spec, name[2:])
            files, options = files + found, (*options, (name, there))
    here = {_MODEL, *(path.name for path in variants)}

    def fetch(number: int, report: TuneReport) -> FetchedFile | None:
        name = report.settings.model
        if name in here:
            return None
        if Path(name).name != name or not name.endswith(".onnx"):
            raise EnvironmentLacksError(
                f"The device calls a model {name!r}.",
                where="settings of the record it sent",
                fix="see that the same version of resdeploy is in its environment",
            )
        path = folder / str(number) / name
        path.parent.mkdir()
        return FetchedFile(name=f"{_TUNED}/{name}", size_bytes=report.best.size_bytes, path=path)

    options = (*options, ("-o", _TUNED))
    call = DeviceCall(command="tune", record=TuneReport, arguments=(argument,), options=options)
    extras = () if calibration is None else ("quantize",)
    return DeviceJob(calls=(call,), files=files, extras=extras, fetch=fetch)


def tune_on_devices(
    run: Callable[[DeviceJob], RemoteReport],
    bundle: Path,
    out: Path | None,
    options: Options,
    *,
    max_drop: float | None,
    data: str | None,
    calibration: str | None,
    precisions: Sequence[str],
    variants: Sequence[Path],
    batch_sizes: Sequence[int],
    objective: Objective,
    force: bool,
    **_of_each_device: Any,
) -> RemoteReport:
    """Search on every device, and write the settings of those that are done to the bundle `out`.

    `run` runs a job on the devices; `options` are those of the command, without the names of files
    here; the other arguments are those of `resdeploy.tune`.

    Raises:
        ResdeployError: arguments contradict each other, a file is not what it should be, or `out`
            exists.
    """
    refuse_contradictions(max_drop, data, calibration, precisions, batch_sizes, objective)
    samples, training = optional_data(data), optional_data(calibration, "calibration")
    if out is not None:
        refuse_existing_directory(out, force=force, marker=MANIFEST)
    with (
        opened_bundle(bundle) as opened,
        tempfile.TemporaryDirectory(prefix="resdeploy-") as temporary,
    ):
        here = {path.name: path for path in (*variants, opened.model)}
        folder = Path(temporary)
        job = tune_job(
            bundle, options, variants=variants, data=samples, calibration=training, folder=folder
        )
        report = run(job)
        found = []
        for number, result in enumerate(report.devices):
            if result.tune is not None and result.failure is None:
                settings = result.tune.settings
                model = here.get(settings.model) or folder / str(number) / settings.model
                found.append((settings, model))
        if out is not None and found:
            write_tuned(opened, out, found, force=force)
    return report


def _data_files(spec: DataSpec, folder: str) -> _Copied:
    """Return the files of a data set with their names there, and the argument for it."""
    if spec.path is None:
        return (), spec.name
    path = Path(spec.path).expanduser()
    if path.is_file():
        return ((path, f"{folder}/{path.name}"),), f"{spec.name}:{folder}/{path.name}"
    below = sorted(one for one in path.rglob("*") if one.is_file())
    if not below:
        raise ResdeployError("There is no data here.", where=str(path))
    files = tuple((one, f"{folder}/{one.relative_to(path).as_posix()}") for one in below)
    return files, f"{spec.name}:{folder}"


def _bundle_files(path: Path) -> _Copied:
    """Return the files of a bundle with their names there, and the argument for it."""
    with opened_bundle(path) as bundle:
        names = [MANIFEST, *(file.path for file in bundle.manifest.files)]
    if is_archive(path):
        return ((path, f"bundle/{path.name}"),), f"bundle/{path.name}"
    return tuple((path / name, f"bundle/{name}") for name in names), "bundle"


def _model_files(path: Path, folder: str) -> _Copied:
    """Return a model file and its external weights, if any, and the argument for it."""
    if not path.is_file():
        raise ResdeployError(
            "There is no such file.", where=str(path), fix="give an .onnx file or a bundle"
        )
    weights = path.with_name(f"{path.name}.data")
    paths = (path, weights) if weights.is_file() else (path,)
    return tuple((one, f"{folder}/{one.name}") for one in paths), f"{folder}/{path.name}"
