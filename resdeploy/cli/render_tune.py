"""Searches as text: the candidates, their costs, and the winner's gain."""

from collections import Counter
from collections.abc import Iterator

from resdeploy.cli.tables import Lines, milliseconds, pass_or_fail, session_text, table
from resdeploy.schema.benchmarks import Profile
from resdeploy.schema.bundles import TunedCheck
from resdeploy.schema.quants import QuantReport
from resdeploy.schema.tunings import TuneReport, TuneTrial
from resdeploy.session.providers import find_provider

__all__ = ["render_tune", "render_tuned", "tuned_line"]


def render_tune(report: TuneReport) -> Lines:
    """Yield every candidate, the fastest first, and the winner's gain."""
    spec = report.spec
    budget = (
        "lossless" if spec.max_drop is None else f"at most {100 * spec.max_drop:g} points lower"
    )
    timed = "p99" if spec.objective == "p99" else "p50"
    columns = ("model", "session", "batch", timed, "memory", "size", "evidence", "")
    trials = [(n != report.winner, trial.time_ns, n) for n, trial in enumerate(report.trials)]
    rows = [_row(report, place) for _, _, place in sorted(trials)]
    yield from table(f"{report.name}: {spec.objective}, {budget}", columns, rows)
    yield f"searched on: {', '.join(spec.providers)}"
    yield from map(_made, report.quants)
    best = report.best
    yield f"best: {_way(report)}"
    if best.evidence:
        yield f"evidence: {best.evidence}"
    if report.ties:
        yield f"{len(report.ties)} others are not significantly slower"
    yield _gain(report)
    if report.profile is not None and (limit := _limit(report.profile, best)) is not None:
        yield limit


def _made(quant: QuantReport) -> str:
    quality = quant.quality
    return (
        f"made {quant.output or quant.spec.precision}: relative error {quality.error:.4f}, "
        f"{quality.num_flips} of {quality.num_inputs} predictions changed, "
        f"{len(quant.kept_float)} layers left in float32"
    )


def tuned_line(report: TuneReport) -> str:
    """Return the winner and its gain, as one line of a table."""
    return f"{_way(report)}: {_gain(report)}"


def _way(report: TuneReport) -> str:
    best = report.best
    return f"{best.model}, {session_text(best.session)}, batch {best.batch_size}"


def render_tuned(check: TunedCheck) -> Iterator[str]:
    """Yield the verdict on settings that were tuned for this machine."""
    settings, found = check.settings, check.found
    promise = (
        "lossless" if settings.max_drop is None else f"at most {100 * settings.max_drop:g} points"
    )
    yield (
        f"tuned for {settings.objective}: {pass_or_fail(check.passed)}  {settings.model}, "
        f"{session_text(settings.session)}, batch {settings.batch_size} ({promise}: "
        f"{settings.evidence})"
    )
    yield (
        f"  {found.num_same_class} of {found.num_inputs} predictions are the reference's, largest "
        f"error {found.error:.2g} of the largest output; when tuned "
        f"{settings.answers.num_same_class}, {settings.answers.error:.2g}"
    )
    yield from (f"  {reason}" for reason in check.reasons)


def _row(report: TuneReport, place: int) -> tuple[str, ...]:
    trial = report.trials[place]
    remark = trial.out or ("best" if place == report.winner else "not significantly slower")
    if place in report.front and place != report.winner:
        remark = f"{remark}; on the Pareto front"
    memory = "" if trial.ram_peak_bytes is None else f"{trial.ram_peak_bytes / 1e6:.0f} MB"
    return (
        trial.model,
        session_text(trial.session),
        str(trial.batch_size),
        milliseconds(trial.time_ns) if trial.times_ns else "-",
        memory,
        f"{trial.size_bytes / 1e6:.1f} MB" if trial.size_bytes else "-",
        trial.evidence,
        remark,
    )


def _gain(report: TuneReport) -> str:
    if report.comparison is None:
        return "ONNX Runtime's defaults are the best here: nothing is gained over them"
    # Of the first provider searched: on others the gain would be another.
    provider, ratio = report.spec.providers[0], report.comparison.p50
    return (
        f"against ONNX Runtime's defaults on {provider}: {1 / ratio.ratio:.2f} times as fast "
        f"({1 / ratio.high:.2f} to {1 / ratio.low:.2f}), {ratio.verdict}"
    )


def _limit(profile: Profile, best: TuneTrial) -> str | None:
    """Return the winner's share of time in products, and their share of the machine's peak rate."""
    is_its_own = find_provider(best.session.provider).has_layer_times
    total_ns = max(1, sum(layer.p50_ns for layer in profile.layers))
    products = [layer for layer in profile.layers if layer.num_macs]
    products_ns = sum(layer.p50_ns for layer in products)
    if not products_ns:
        return f"its time: {_by_operator(profile, total_ns)}" if is_its_own else None
    # How long they would take at the rate of a large product of their own kind.
    ideal_ns = 1e9 * sum(layer.num_macs / profile.peak_of(layer) for layer in products)
    kinds = " and ".join(sorted({"int8" if x.is_integer else "float32" for x in products}))
    rate = f"of the rate of a large matrix product in {kinds}"
    if not is_its_own:
        # Its own layers are not known: the whole run, all that is no product included.
        return f"it runs at {ideal_ns / best.time_ns:.0%} {rate} on ONNX Runtime's CPU provider"
    line = (
        f"{products_ns / total_ns:.0%} of its time is in products, at "
        f"{ideal_ns / products_ns:.0%} {rate}"
    )
    others = [layer for layer in profile.layers if not layer.num_macs]
    other = max(others, key=lambda layer: layer.p50_ns, default=None)
    if other is not None and other.p50_ns / total_ns > 0.05:
        line += f"; most of the rest is {other.name} ({other.op}, {other.p50_ns / total_ns:.0%})"
    return line


def _by_operator(profile: Profile, total_ns: int) -> str:
    """Return the operators that take the most time."""
    times: Counter[str] = Counter()
    for layer in profile.layers:
        times[layer.op] += layer.p50_ns
    return ", ".join(f"{ns / total_ns:.0%} in {op}" for op, ns in times.most_common(3))
