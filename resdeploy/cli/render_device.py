"""Probes, findings, predictions and the results of devices as text."""

from collections.abc import Iterator

from resdeploy.cli.render_tune import tuned_line
from resdeploy.cli.tables import Lines, milliseconds, pass_or_fail, table
from resdeploy.machine.compatibility import readable_by
from resdeploy.schema.bundles import PredictReport
from resdeploy.schema.machines import DoctorReport, ProbeReport
from resdeploy.schema.remotes import DeviceResult, RemoteReport

__all__ = ["render_doctor", "render_predict", "render_probe", "render_remote"]


def render_predict(report: PredictReport) -> Lines:
    """Yield the classes of each input, the likeliest first, or the outputs that were written."""
    rows = []
    for prediction in report.predictions:
        for place, scored in enumerate(prediction.classes):
            label = str(scored.index) if scored.label is None else scored.label
            rows.append(
                (prediction.input if place == 0 else "", label, f"{scored.probability:.4%}")
            )
    session = report.session
    title = f"{report.name} on {session.spec.provider}"
    if report.file is None:
        yield from table(title, ("input", "class", "probability"), rows)
    else:
        arrays = [(o.name, o.dtype, "x".join(map(str, o.shape))) for o in report.outputs]
        yield from table(title, ("output", "type", "shape"), arrays)
        yield f"{report.file.path}: a row for each of {len(report.predictions)} inputs, in order"
    yield f"digest {report.digest[:16]}, {session.runtime} {session.runtime_version}"


def render_probe(report: ProbeReport) -> Lines:
    """Yield the machine, its providers, and what its runtime reads."""
    machine = report.environment
    has = ", ".join(name for name, found in report.cpu_features.items() if found)
    lacks = ", ".join(name for name, found in report.cpu_features.items() if not found)
    readable = readable_by(report.runtime_version)
    memory = "unknown" if machine.ram_bytes is None else f"{machine.ram_bytes / 1e9:.1f} GB"
    lines = {
        "machine": f"{machine.machine}, {machine.system}",
        "cpu": f"{machine.cpu_model or 'unknown'}, {machine.num_cpus_allowed} of "
        f"{machine.num_cpus} CPUs allowed",
        "cpu has": has or "not known",
        "cpu lacks": lacks or "not known",
        "memory": memory,
        "gpu": ", ".join(machine.gpu_names) or "none found",
        "runtime": f"{report.runtime} {report.runtime_version}, reads opset {readable.opset} "
        f"and IR version {readable.ir_version}",
        "plugins": ", ".join(f"{n} {v}" for n, v in report.plugins.items()) or "none",
    }
    yield from (f"{name:<11}{text}" for name, text in lines.items())
    yield from (f"{'lacks':<11}{lack}" for lack in report.lacks)
    for probed in report.providers:
        yield f"{probed.provider:<11}{'starts' if probed.starts else probed.why_not}"
        if probed.fix is not None:
            yield f"{'':<11}fix: {probed.fix}"


def render_doctor(report: DoctorReport) -> Lines:
    """Yield every finding, with its fix, and the verdict."""
    for finding in report.findings:
        yield f"{finding.verdict:<8}{finding.subject}: {finding.what}"
        if finding.fix is not None:
            yield f"{'':8}fix: {finding.fix}"
    num = sum(finding.verdict == "fault" for finding in report.findings)
    asked = ", ".join(report.providers)
    faults = f"{num} fault{'s' if num > 1 else ''} for {asked}"
    yield f"all is well for {asked}" if report.passed else faults


def render_remote(report: RemoteReport) -> Lines:
    """Yield one line for each device."""
    rows = []
    for result in report.devices:
        used = result.installation
        where = (
            "" if used is None else f"Python {used.python_version} on {used.machine}, {used.origin}"
        )
        rows.append((result.device.name, _verdict(result), "; ".join(_findings(result)), where))
    columns = ("device", "verdict", "result", "environment")
    yield from table(f"{report.command} on {len(rows)} device{'s'[: len(rows) > 1]}", columns, rows)


def _verdict(result: DeviceResult) -> str:
    if not result.passed:
        return "FAIL"
    # A time, or a probe, has no verdict.
    return "done" if result.check is None and result.comparison is None else "PASS"


def _findings(result: DeviceResult) -> Iterator[str]:
    if result.check is not None:
        yield f"check {pass_or_fail(result.check.passed)}"
    if result.bench is not None:
        first = result.bench.results[0]
        more = len(result.bench.results) - 1
        yield (
            f"p50 {milliseconds(first.summary.p50_ns)}, p99 {milliseconds(first.summary.p99_ns)}"
            + (f" and {more} more" if more else "")
            + ("" if first.stable else f", not stable: {first.unstable_reasons[0]}")
        )
    if result.comparison is not None:
        p50 = result.comparison.p50
        yield f"p50 {p50.verdict}: {p50.ratio:.4f} ({p50.low:.4f} to {p50.high:.4f})"
    if result.probe is not None:
        starting = [probed.provider for probed in result.probe.providers if probed.starts]
        machine = result.probe.environment
        yield f"{machine.cpu_model or machine.machine}: starts {', '.join(starting)}"
    if result.tune is not None:
        yield tuned_line(result.tune)
    if result.failure is not None:
        yield f"{result.failure.stage} failed"
