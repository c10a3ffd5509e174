"""What each command asks of a device: the files it needs there, and the commands to run."""

from pathlib import Path

from resdeploy.bundle import MANIFEST
from resdeploy.bundle_archive import is_archive, opened_bundle
from resdeploy.errors import ResdeployError
from resdeploy.remote.fleet_run import Call, Job
from resdeploy.schema.benchmarks import BenchComparison, BenchReport
from resdeploy.schema.bundles import CheckReport
from resdeploy.schema.machines import ProbeReport

__all__ = ["Options", "bench_job", "check_job", "probe_job"]

# Options of a command line, as (name, value), or (name,) for a flag.
Options = tuple[tuple[str, ...], ...]

_OF_THE_SESSION = ("--provider", "--tf32", "--openvino-precision")


def check_job(bundle: Path, options: Options) -> Job:
    """Return the job of `resdeploy check`.

    Raises:
        BundleError: the bundle is not intact here, so that no device need be asked.
    """
    files, argument = _bundle_files(bundle)
    call = Call(command="check", record=CheckReport, arguments=(argument,), options=options)
    return Job(command="check", calls=(call,), files=files)


def bench_job(model: Path, options: Options, *, against: Path | None, compared: bool) -> Job:
    """Return the job of `resdeploy bench`; of a bundle, after its check in the same session.

    Args:
        model: an ONNX file or a bundle.
        options: of the command, without those that name files here.
        against: the file that `--against` names.
        compared: whether the record is a comparison, with that or with another setting.

    Raises:
        ResdeployError: there is no such file, or the bundle is not intact.
    """
    record = BenchComparison if compared else BenchReport
    calls: tuple[Call, ...] = ()
    if model.is_dir() or is_archive(model):
        files, argument = _bundle_files(model)
        session = tuple(option for option in options if option[0] in _OF_THE_SESSION)
        calls = (Call(command="check", record=CheckReport, arguments=(argument,), options=session),)
    else:
        files, argument = _model_files(model, "model")
    if against is not None:
        other, other_argument = _model_files(against, "against")
        files += other
        options = (*options, ("--against", other_argument))
    bench = Call(command="bench", record=record, arguments=(argument,), options=options)
    return Job(command="bench", calls=(*calls, bench), files=files)


def probe_job() -> Job:
    """Return the job of `resdeploy probe`."""
    return Job(command="probe", calls=(Call(command="probe", record=ProbeReport),))


def _bundle_files(path: Path) -> tuple[tuple[tuple[Path, str], ...], str]:
    """Return the files of a bundle with their names there, and the argument that means it."""
    with opened_bundle(path) as bundle:
        names = [MANIFEST, *(file.path for file in bundle.manifest.files)]
    if is_archive(path):
        return ((path, f"bundle/{path.name}"),), f"bundle/{path.name}"
    return tuple((path / name, f"bundle/{name}") for name in names), "bundle"


def _model_files(path: Path, folder: str) -> tuple[tuple[tuple[Path, str], ...], str]:
    """Return a file, and the weights beside it where it keeps them there."""
    if not path.is_file():
        raise ResdeployError(
            "There is no such file.", where=str(path), fix="give an .onnx file or a bundle"
        )
    weights = path.with_name(f"{path.name}.data")
    paths = (path, weights) if weights.is_file() else (path,)
    return tuple((one, f"{folder}/{one.name}") for one in paths), f"{folder}/{path.name}"
