"""Results of devices as text: one table, with a line for each device."""

from resdeploy.cli.render_tune import tuned_line
from resdeploy.cli.tables import milliseconds, pass_or_fail, print_table
from resdeploy.schema.remotes import DeviceResult, Installation, RemoteReport

__all__ = ["render_remote", "single_records"]


def render_remote(report: RemoteReport) -> None:
    """Print one line for each device."""
    rows = [
        (
            result.device.name,
            _verdict(result),
            "; ".join(_findings(result)),
            "" if result.installation is None else _installation(result.installation),
        )
        for result in report.devices
    ]
    columns = ("device", "verdict", "result", "environment")
    print_table(f"{report.command} on {len(rows)} device{'s'[: len(rows) > 1]}", columns, rows)


def single_records(report: RemoteReport) -> tuple[object, ...]:
    """Return the records of the only device, which can be shown in full; none of several."""
    if len(report.devices) != 1:
        return ()
    (result,) = report.devices
    records = (result.check, result.bench, result.comparison, result.probe, result.tune)
    return tuple(record for record in records if record is not None)


def _verdict(result: DeviceResult) -> str:
    if not result.passed:
        return "FAIL"
    # A time, or a probe, has no verdict.
    return "done" if result.check is None and result.comparison is None else "PASS"


def _findings(result: DeviceResult) -> list[str]:
    found = []
    if result.check is not None:
        found.append(f"check {pass_or_fail(result.check.passed)}")
    if result.bench is not None:
        first = result.bench.results[0]
        more = len(result.bench.results) - 1
        found.append(
            f"p50 {milliseconds(first.summary.p50_ns)}, p99 {milliseconds(first.summary.p99_ns)}"
            + (f" and {more} more" if more else "")
            + ("" if first.stable else f", not stable: {first.unstable_reasons[0]}")
        )
    if result.comparison is not None:
        p50 = result.comparison.p50
        found.append(f"p50 {p50.verdict}: {p50.ratio:.4f} ({p50.low:.4f} to {p50.high:.4f})")
    if result.probe is not None:
        starting = [probed.provider for probed in result.probe.providers if probed.starts]
        machine = result.probe.environment
        found.append(f"{machine.cpu_model or machine.machine}: starts {', '.join(starting)}")
    if result.tune is not None:
        found.append(tuned_line(result.tune))
    if result.failure is not None:
        found.append(f"{result.failure.stage} failed")
    return found


def _installation(used: Installation) -> str:
    return f"Python {used.python_version} on {used.machine}, {used.origin}"
