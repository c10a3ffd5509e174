"""Benchmarks as text. No arithmetic beyond units and sums."""

from resdeploy.cli.tables import Lines, milliseconds, pass_or_fail, session_text, table
from resdeploy.schema.benchmarks import (
    BenchComparison,
    BenchReport,
    BenchResult,
    BenchSide,
    Profile,
)

__all__ = ["render_comparison", "render_report"]


def render_report(report: BenchReport) -> Lines:
    """Yield one table for a single result, and one line for each of several."""
    if len(report.results) == 1:
        yield from _result(report.results[0])
        return
    rows = [
        (
            str(r.spec.batch_size),
            str(r.spec.session.num_threads or "default"),
            milliseconds(r.summary.p50_ns),
            milliseconds(r.summary.p99_ns) if r.summary.num_runs >= 100 else "too few runs",
            f"{r.summary.throughput_per_s:,.1f}",
            _memory(r),
            "yes" if r.stable else f"no: {r.unstable_reasons[0]}",
        )
        for r in report.results
    ]
    first = report.results[0]
    columns = ("batch", "threads", "p50", "p99", "samples/s", "memory", "stable")
    yield from table(f"{first.model.path} on {first.spec.session.provider}", columns, rows)
    for result in report.results:
        if result.profile is not None:
            yield f"batch {result.spec.batch_size}, threads {result.spec.session.num_threads}"
            yield from _profile(result.profile)


def _result(result: BenchResult) -> Lines:
    from resdeploy.statistics.quantiles import percentile

    summary = result.summary
    rows = [
        (f"p{q:g}", milliseconds(value_ns), _interval(result, q, interval_ns))
        for q, value_ns, interval_ns in (
            (50, summary.p50_ns, summary.p50_interval_ns),
            (90, summary.p90_ns, summary.p90_interval_ns),
            (99, summary.p99_ns, summary.p99_interval_ns),
            (99.9, summary.p999_ns, summary.p999_interval_ns),
        )
    ]
    rows.append(("throughput", f"{summary.throughput_per_s:,.1f} samples/s", ""))
    if result.bound_ns:
        bound = percentile(result.bound_ns, 50)
        copies = "input and output left where they are"
        rows.append(("p50 bound", milliseconds(bound), copies))
    rows += [
        ("load", milliseconds(result.load_ns), ""),
        ("first run", milliseconds(result.warmup_ns[0]), ""),
        ("memory", _memory(result), "the process's peak"),
        ("stable", "yes" if result.stable else "no", "; ".join(result.unstable_reasons)),
    ]
    scenario: str = result.spec.scenario
    if result.spec.qps is not None:
        scenario += f" at {result.spec.qps:g} runs/s"
    start = "the request for a run" if result.arrivals_ns else "host memory"
    yield f"scenario {scenario}, from {start} to host memory"
    title = (
        f"{result.model.path} on {result.spec.session.provider}, batch {result.spec.batch_size}, "
        f"{summary.num_runs} runs after {len(result.warmup_ns)} of warm-up"
    )
    yield from table(title, ("figure", "value", ""), rows)
    if (loadgen := result.loadgen) is not None:
        reasons = f" ({', '.join(loadgen.reasons)})" if loadgen.reasons else ""
        yield (
            f"LoadGen {loadgen.version}: {loadgen.metric} {loadgen.value:,.10g}, "
            f"{'VALID' if loadgen.valid else 'INVALID'}{reasons}; "
            "unofficial, not verified by MLCommons"
        )
    yield _where(result)
    yield from (f"the runtime warns: {warning}" for warning in result.warnings)
    if result.num_subnormal_weights:
        yield (
            f"{result.num_subnormal_weights} weights are subnormal, which slows some processors: "
            "resdeploy export sets those that a fold makes to zero"
        )
    if result.num_subnormal_weights is None:
        yield "subnormal weights: not looked for, as the weights are not in the file itself"
    if result.profile is not None:
        yield from _profile(result.profile)


def _where(result: BenchResult) -> str:
    session = result.session
    runtime = f"{session.runtime} {session.runtime_version}"
    if result.placement is None:
        return f"ran on {session.active_providers[0]} ({runtime})"
    kernels = [f"{count} of {name}" for name, count in result.placement.executed.items()]
    return f"kernels that ran: {', '.join(kernels) or 'none'} ({runtime})"


def _interval(result: BenchResult, q: float, interval_ns: tuple[float, ...]) -> str:
    from resdeploy.statistics.quantiles import runs_needed

    if not interval_ns or result.spec.scenario == "offline":
        return ""  # all at once, each waits longer than the one before
    low, high = interval_ns
    if high < float("inf"):
        return f"95 % interval {milliseconds(low)} to {milliseconds(high)}"
    needed = f"too few runs for p{q:g}: it takes some {runs_needed(result.latencies_ns, q):,}"
    return f"{needed}; at least {milliseconds(low)} at 95 %" if low else needed


def _memory(result: BenchResult) -> str:
    sizes = {"": result.ram_peak_bytes, "GPU ": result.gpu_bytes}
    parts = [f"{name}{size / 1e6:.1f} MB" for name, size in sizes.items() if size is not None]
    return ", ".join(parts) or "not readable"


def _profile(profile: Profile) -> Lines:
    total_ns = sum(layer.p50_ns for layer in profile.layers)
    rows = []
    for layer in profile.layers:
        seconds = max(layer.p50_ns, 1) / 1e9
        macs, byte_rate = layer.num_macs / seconds, layer.num_bytes / seconds
        rows.append(
            (
                layer.name,
                layer.op,
                f"{layer.p50_ns / 1e3:.0f} us",
                f"{layer.p50_ns / max(total_ns, 1):.1%}",
                f"{layer.num_macs / 1e6:.2f}",
                f"{layer.num_bytes / 1e3:.1f}",
                f"{macs / profile.peak_of(layer):.0%}" if layer.num_macs else "",
                f"{byte_rate / profile.peak_bytes_per_s:.0%}",
            )
        )
    title = (
        f"layers, median of {profile.num_runs} profiled runs, which take "
        f"{milliseconds(profile.run_p50_ns)} each"
    )
    columns = ("layer", "operator", "time", "share", "MMAC", "kB", "of peak MAC/s", "of peak B/s")
    yield from table(title, columns, rows)
    integers = ""
    if profile.peak_integer_macs_per_s is not None:
        integers = f", {profile.peak_integer_macs_per_s / 1e9:.1f} (one of int8)"
    yield (
        f"measured peaks: {profile.peak_macs_per_s / 1e9:.1f} GMAC/s (matrix product){integers}, "
        f"{profile.peak_bytes_per_s / 1e9:.1f} GB/s (copy); caches are faster than the copy"
    )


def render_comparison(comparison: BenchComparison) -> Lines:
    """Yield the verdict, the ratios with their intervals, and the caveats."""
    rows = [
        (name, f"{one.ratio:.4f}", f"{one.low:.4f} to {one.high:.4f}", one.verdict)
        for name, one in (("p50", comparison.p50), ("p99", comparison.p99))
        if one is not None
    ]
    columns = ("figure", "ratio", f"{comparison.confidence:.0%} interval", "verdict")
    title = f"{_side(comparison.candidate)} against {_side(comparison.baseline)}"
    yield from table(title, columns, rows)
    if comparison.interleaved:
        yield f"timed in turn in {len(comparison.blocks)} pairs of fresh processes"
    yield from comparison.caveats
    if comparison.max_slowdown is not None:
        outcome = pass_or_fail(comparison.passed)
        yield f"{outcome}: slower by more than {comparison.max_slowdown:.1%} fails"


def _side(side: BenchSide) -> str:
    runner = side.spec.runner
    name = runner.source.factory if side.model is None else side.model.path
    by = "" if runner.name == "session" else f" by {runner.name}"
    word = "" if side.verdict is None else f" ({side.verdict})"
    return f"{name}{word}{by} on {session_text(side.spec.session)}"
