"""A report as a page of Markdown: verdicts, latencies against the roofline, settings, peers."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.cuda.records import Case, Ceilings, GpuReport, NetworkWork, Outcome, Timed
from benchmarks.cuda.roofline import Bound, bound_of
from resdeploy.schema.benchmarks import BenchResult, SpeedRatio
from resdeploy.statistics.paired import mean_ratio

__all__ = ["page_of", "ratios_of"]


def page_of(report: GpuReport, *, num_left: int = 0) -> str:
    """Return the page; `num_left` cases have not been run yet."""
    parts = [
        _head(report, num_left),
        *_verdicts(report),
        *_latencies(report),
        *_turns(
            report, "settings", "What resdeploy chooses, beside what it could choose", "as chosen"
        ),
        *_turns(report, "peers", "Everything that can run it", None),
        *_failures(report),
    ]
    return "\n\n".join(parts) + "\n"


def _head(report: GpuReport, num_left: int) -> str:
    environment = report.environment
    ceilings = _ceilings(report)
    device = ceilings.device if ceilings is not None else report.spec.provider
    num_failed = sum(not outcome.passed for outcome in report.outcomes)
    runtimes = (f"{n} {v}" for n, v in environment.versions.items() if n.startswith("onnxruntime"))
    lines = [
        f"# {report.spec.provider} on {', '.join(environment.gpu_names) or device}",
        "",
        f"{len(report.outcomes)} cases run, {num_left} left, {num_failed} failed.",
        f"{', '.join(runtimes)}; {environment.cpu_model}, {environment.num_cpus_allowed} CPUs.",
    ]
    if report.spec.side is not None:
        lines.append(f"A small trial: images of {report.spec.side} pixels.")
    if ceilings is not None:
        rates = ", ".join(f"{n} {r / 1e12:.3g}" for n, r in ceilings.macs_per_s.items())
        lines.append(
            f"Ceilings by torch: {rates} TMAC/s; copy {ceilings.copy_bytes_per_s / 1e9:.0f} GB/s."
        )
        lines += [f"No ceiling of {name}: {why}." for name, why in ceilings.missing.items()]
    return "\n".join(lines)


def _ceilings(report: GpuReport) -> Ceilings | None:
    return next((o.ceilings for o in report.outcomes if o.ceilings is not None), None)


def _works(report: GpuReport) -> dict[str, NetworkWork]:
    return {o.case.network: o.work for o in report.outcomes if o.work is not None}


# --- verdicts ------------------------------------------------------------------------------------


def _verdicts(report: GpuReport) -> Iterator[str]:
    rows = [row for outcome in report.outcomes for row in _verdict_rows(outcome)]
    if rows:
        yield "## Is it the same network there?"
        heads = ("network", "claims", "session", "verdict", "R", "rel. L2", "found", "elsewhere")
        yield _table((*heads, "copies", "same bits again", "layers"), rows)
        yield (
            "R is the error over the noise that PyTorch's float32 makes in this network, both from "
            "float64; at most 4 passes as float32, and at most 4 times its own noise as another "
            "arithmetic. Elsewhere: nodes and kernels on another provider. Copies: Memcpy kernels "
            "of one run."
        )
    switches = [line for outcome in report.outcomes for line in _switches(outcome)]
    if switches:
        yield "\n".join(switches)


def _verdict_rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    case = outcome.case
    if outcome.verify is None:
        return
    for verdict in outcome.verify.verdicts:
        comparison, placement = verdict.comparison, verdict.placement
        again, local = verdict.conformance, verdict.node_local
        yield (
            case.network,
            case.arithmetic,
            _session(case),
            "pass" if outcome.verify.passed else "FAIL",
            f"{comparison.noise_ratio:.3g}",
            f"{comparison.diff.rel_l2:.1e}",
            comparison.precision.found if comparison.precision is not None else "",
            "" if placement is None else str(len(placement.strays)),
            "" if placement is None else str(placement.num_copies),
            "" if again is None else _bits(again.deterministic, again.max_run_to_run),
            "" if local is None else f"{len(local.nodes)} {'pass' if local.passed else 'FAIL'}",
        )


def _bits(is_deterministic: bool, difference: float) -> str:
    return "yes" if is_deterministic else f"no, up to {difference:.1e}"


def _switches(outcome: Outcome) -> Iterator[str]:
    """Yield the deviations due to a faster arithmetic, of the sessions whose provider has one."""
    if outcome.verify is None or outcome.case.form != "float32":
        return
    for verdict in outcome.verify.verdicts:
        if (both := verdict.attribution) is not None:
            yield (
                f"- {outcome.case.network} {_session(outcome.case)}: "
                f"{both.exact.options} errs {both.exact.rel_l2:.1e} ({both.exact.found}), "
                f"{both.fast.options} errs {both.fast.rel_l2:.1e} ({both.fast.found})."
            )


# --- latencies -----------------------------------------------------------------------------------


def _latencies(report: GpuReport) -> Iterator[str]:
    ceilings, works = _ceilings(report), _works(report)
    rows = []
    for outcome in report.outcomes:
        if outcome.bench is None:
            continue
        case = outcome.case
        work = works.get(case.network)
        bound = None
        if work is not None and ceilings is not None:
            bound = bound_of(work, ceilings, arithmetic=case.arithmetic, batch_size=case.batch_size)
        rows.append(_latency_row(case, outcome.bench, bound))
    if rows:
        yield "## How fast is it?"
        heads = ("network", "arithmetic", "session", "batch", "host ms", "bound ms", "img/s")
        yield _table((*heads, "first ms", "of roofline", "limit", "stable"), rows)
        yield (
            "Host: median from host memory to host memory. Bound: input and output stay on the "
            "device (IOBinding); images per second and the share of the roofline are of these."
        )


def _latency_row(case: Case, result: BenchResult, bound: Bound | None) -> tuple[str, ...]:
    bound_ns = statistics.median(result.bound_ns) if result.bound_ns else math.nan
    return (
        case.network,
        case.arithmetic,
        _session(case),
        str(case.batch_size),
        _ms(result.summary.p50_ns),
        _ms(bound_ns),
        f"{1e9 * case.batch_size / bound_ns:.0f}",
        _ms(result.warmup_ns[0]),
        "" if bound is None else f"{1e9 * bound.time_s / bound_ns:.0%}",
        "" if bound is None else bound.limit,
        "yes" if result.stable else "no",
    )


# --- in turn -------------------------------------------------------------------------------------


def ratios_of(blocks: Sequence[Sequence[Timed]], baseline: str) -> dict[str, SpeedRatio | None]:
    """Return each competitor's time on the device over that of `baseline`, by name.

    None where it was timed beside the baseline in no block. Of one block there is no interval: it
    is then as wide as can be.
    """
    logs: dict[str, list[float]] = defaultdict(list)
    names = dict.fromkeys(one.name for block in blocks for one in block)
    for block in blocks:
        medians = {one.name: statistics.median(one.device_ns) for one in block if one.device_ns}
        if baseline in medians:
            for name, median_ns in medians.items():
                logs[name].append(math.log(median_ns / medians[baseline]))
    return {name: _ratio(logs[name]) if name in logs else None for name in names}


def _ratio(logs: Sequence[float]) -> SpeedRatio:
    if len(logs) > 1:
        return mean_ratio(logs)
    return SpeedRatio(ratio=math.exp(logs[0]), low=0.0, high=math.inf)


def _turns(report: GpuReport, kind: str, title: str, baseline: str | None) -> Iterator[str]:
    blocks: dict[tuple[str, str, int], list[Sequence[Timed]]] = defaultdict(list)
    for outcome in report.outcomes:
        case = outcome.case
        if case.kind == kind and outcome.timed:
            blocks[case.network, case.form, case.batch_size].append(outcome.timed)
    if not blocks:
        return
    yield f"## {title}"
    for (network, form, size), found in blocks.items():
        # The best of the first block is what peers are held against, ours or not.
        base = baseline or _fastest(found[0])
        what = f"{network}, batch {size}" + (f", {form}" if kind == "settings" else "")
        yield f"### {what}: time over that of “{base}”, {len(found)} blocks"
        yield _table(
            ("", "ratio", "95 %", "verdict", "device ms", "host ms", "rel. L2"),
            list(_turn_rows(found, base)),
        )
    if baseline is not None:
        yield f"### How often each is faster or slower than “{baseline}”, of {len(blocks)} tables"
        yield _table(
            ("", "faster", "slower", "cannot tell"), list(_tally(blocks.values(), baseline))
        )


def _tally(tables: Iterable[Sequence[Sequence[Timed]]], baseline: str) -> Iterator[tuple[str, ...]]:
    """Yield the evidence of all tables for and against each default."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for blocks in tables:
        for name, ratio in ratios_of(blocks, baseline).items():
            if name != baseline and ratio is not None:
                counts[name][ratio.verdict] += 1
    for name, found in counts.items():
        yield (name, *(str(found[word]) for word in ("faster", "slower", "cannot tell")))


def _turn_rows(blocks: Sequence[Sequence[Timed]], base: str) -> Iterator[tuple[str, ...]]:
    ratios = ratios_of(blocks, base)
    for name, ratio in sorted(
        ratios.items(), key=lambda item: math.inf if item[1] is None else item[1].ratio
    ):
        mine = [one for block in blocks for one in block if one.name == name]
        # Of the three parts of a message, a table has room for what went wrong.
        failures = dict.fromkeys(one.failure.partition("\n")[0] for one in mine if one.failure)
        errors = [one.rel_l2 for one in mine if one.rel_l2 is not None]
        has_interval = ratio is not None and math.isfinite(ratio.high)
        yield (
            name,
            "" if ratio is None else f"{ratio.ratio:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio is not None and has_interval else "",
            "; ".join(failures) or _verdict(ratio, is_base=name == base),
            _median_ms(mine, "device"),
            _median_ms(mine, "host"),
            f"{max(errors):.1e}" if errors else "",
        )


def _verdict(ratio: SpeedRatio | None, *, is_base: bool) -> str:
    if is_base or ratio is None:
        return ""
    return ratio.verdict if math.isfinite(ratio.high) else "one block: cannot tell"


def _fastest(block: Sequence[Timed]) -> str:
    timed = [one for one in block if one.device_ns]
    return min(timed, key=lambda one: statistics.median(one.device_ns)).name if timed else ""


def _median_ms(timed: Sequence[Timed], memory: str) -> str:
    times = [
        value for one in timed for value in (one.device_ns if memory == "device" else one.host_ns)
    ]
    return _ms(statistics.median(times)) if times else ""


# --- failures, and the form of a table -----------------------------------------------------------


def _failures(report: GpuReport) -> Iterator[str]:
    lines = []
    for outcome in report.outcomes:
        reasons: list[str] = []
        if outcome.failure is not None:
            reasons.append(" ".join(outcome.failure.split()))
        if outcome.verify is not None:
            reasons += outcome.verify.reasons
            reasons += [reason for one in outcome.verify.verdicts for reason in one.reasons]
        if reasons:
            lines.append(f"- {outcome.case.title}: {'; '.join(reasons)}")
    if lines:
        yield "## What failed"
        yield "\n".join(lines)


def _session(case: Case) -> str:
    title = case.title.split()
    return " ".join(word for word in title if word in ("NCHW", "NHWC", "graph", "launches"))


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in x) + " |" for x in lines)
