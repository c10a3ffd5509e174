"""Records as text: tables on stdout, or one JSON record. No arithmetic beyond units."""

import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from resdeploy.cli.render_accuracy import render_evaluate, render_quantize
from resdeploy.cli.render_bench import render_comparison, render_report
from resdeploy.cli.render_device import (
    render_doctor,
    render_predict,
    render_probe,
    render_remote,
)
from resdeploy.cli.render_tune import render_tune, render_tuned, tuned_line
from resdeploy.cli.tables import Grid, Lines, coloured, pass_or_fail, table
from resdeploy.schema.bundles import CheckReport, DemoReport, Manifest
from resdeploy.schema.exports import ExportReport
from resdeploy.schema.folds import FoldedSite, FoldReport
from resdeploy.schema.recipes import TrainReport
from resdeploy.schema.remotes import RemoteReport
from resdeploy.schema.sessions import Placement
from resdeploy.schema.ships import ShipReport
from resdeploy.schema.verdicts import (
    Attribution,
    Comparison,
    Conformance,
    PlantedFault,
    ProviderVerdict,
    SelftestReport,
    VerifyReport,
)
from resdeploy.verify.precision import title as precision_title

__all__ = ["render"]

_MOST_REASONS = 3


def render(record: Any) -> None:
    """Print a record for a person."""
    out = Console(highlight=False, soft_wrap=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = 120  # when piped, so that no figure is cut
    for line in _lines(record):
        if isinstance(line, Grid):
            out.print(line.drawn(out.width))
        else:
            # A terminal's own wrapping would cut words; elsewhere a line stays one.
            out.print(coloured(line), soft_wrap=not out.is_terminal, overflow="ignore", crop=False)


@functools.singledispatch
def _lines(record: Any) -> Lines:
    raise NotImplementedError(type(record).__name__)


# The record of each is the type of its parameter.
for _renderer in (
    *(render_comparison, render_doctor, render_evaluate, render_predict, render_probe),
    *(render_quantize, render_report, render_tune),
):
    _lines.register(_renderer)


@_lines.register
def _train(report: TrainReport) -> Lines:
    yield (
        f"{report.recipe.name}: {report.last.test_accuracy:.2%} of {report.num_test} test samples "
        f"after {report.last.epoch} epochs ({report.num_parameters:,} parameters)\n"
        f"checkpoint {report.checkpoint}"
    )


@_lines.register
def _fold(report: FoldReport) -> Lines:
    folded = [
        (s.site, s.producer, str(s.num_consumers), _outcome(s), f"{s.max_ulp:.3f}")
        for s in report.folded
    ]
    refused = [
        (s.site, "", str(s.num_consumers), f"refused: {s.reason}", "") for s in report.refused
    ]
    yield from report.source
    columns = ("site", "layer", "consumers", "outcome", "max ulp")
    yield from table("BatchNorm", columns, folded + refused)
    yield _fold_summary(report)
    if report.num_frozen:
        yield f"{report.num_frozen} weights that the file lists as inputs too: taken as constants"
    if report.not_judged is not None:
        yield f"not judged: {report.not_judged}"


def _outcome(site: FoldedSite) -> str:
    return f"{'scale ' if site.keeps_shift else ''}folded into {site.op}" + (
        ", shift kept as an Add" if site.keeps_shift else ""
    )


def _fold_summary(report: FoldReport) -> str:
    """Return one line: counts of folded, refused and flushed, and the largest error."""
    line = f"{len(report.folded)} folded, {len(report.refused)} refused"
    if report.folded:
        line += f", every weight within {max(s.max_ulp for s in report.folded):.2f} ulp"
    flushed = sum(s.num_flushed for s in report.folded)
    return f"{line}, {flushed} subnormal values set to zero" if flushed else line


@_lines.register
def _export(report: ExportReport) -> Lines:
    yield from report.source
    if report.fold is not None:
        yield f"fold     {_fold_summary(report.fold)}"
        yield from (f"         {site.site}: {site.reason}" for site in report.fold.refused)
    yield (
        f"export   {report.file.path}  {_size(report.file.size_bytes)}, {report.num_nodes} nodes, "
        f"opset {report.spec.opset}, batch {report.spec.batch}"
    )
    for verdict in () if report.verification is None else report.verification.verdicts:
        c = verdict.comparison
        yield (
            f"verify   {verdict.session.spec.provider}: {pass_or_fail(verdict.passed)}  "
            f"R = {_ratio(c.noise_ratio)} (limit {c.noise_ratio_limit:g})  "
            f"{'; '.join(verdict.reasons) or _placement(verdict.session)}"
        )


@_lines.register
def _verify(report: VerifyReport) -> Lines:
    columns = (
        *("provider", "verdict", "R", "z rms", "z max", "T", "error as of", "same top-1"),
        "accuracy",
    )
    title = f"{report.model.path} against {report.golden.source}"
    yield from table(title, columns, [_verdict_row(v, report) for v in report.verdicts])
    yield from report.source
    yield f"inputs: {report.golden.inputs}"
    if report.reference_accuracy is not None:
        yield f"accuracy of the float64 reference: {report.reference_accuracy:.2%}"
    yield from _file_evidence(report)
    for verdict in report.verdicts:
        provider = verdict.session.spec.provider
        yield from (f"{provider}: {line}" for line in _provider_evidence(verdict))
    yield from _last_word(report)


def _last_word(report: VerifyReport) -> Iterator[str]:
    """Yield the outcome with the verdict, and for AGREES what was not shown."""
    if report.verdict != "AGREES":
        yield "PASS: PROVED" if report.passed else report.verdict
        return
    yield (
        f"{pass_or_fail(report.passed)}: AGREES, the outputs do; a file that differs for other "
        "inputs is not excluded. Not shown:"
    )
    yield from (f"  {line}" for line in report.unproved)
    if not report.passed:
        yield "  --accept outputs lets this pass"


def _verdict_row(verdict: ProviderVerdict, report: VerifyReport) -> tuple[str, ...]:
    c = verdict.comparison
    return (
        verdict.session.spec.provider,
        report.verdict if verdict.passed else "FAIL",
        _ratio(c.noise_ratio),
        *("-" if value is None else _ratio(value) for value in (c.z_rms, c.z_max, c.systematic)),
        "" if c.precision is None else c.precision.found,
        f"{c.top1_agreement:.2%}",
        "" if verdict.accuracy is None else f"{verdict.accuracy:.2%}",
    )


def _provider_evidence(verdict: ProviderVerdict) -> Iterator[str]:
    nodes = verdict.node_local
    if nodes is not None and (worst := nodes.worst) is not None:
        yield (
            f"{len(nodes.nodes)} layers run on their own inputs, at most "
            f"{worst.of_estimate:.2f} of their bounds (`{worst.node}`)"
        )
    for one in (verdict.placement, nodes, verdict.comparison, verdict.conformance):
        if one is not None:
            yield from _first_few(one.reasons)
    yield from _limits(verdict.comparison)
    if verdict.attribution is not None:
        yield _attribution(verdict.attribution)
    for layer, why in verdict.missing.items():
        yield f"no evidence on {_LAYERS[layer]}: {why}"
    yield _placement(verdict.session)
    if verdict.placement is not None:
        yield _executed(verdict.placement)
    if verdict.conformance is not None:
        yield from _conformance(verdict.conformance)


def _limits(c: Comparison) -> Iterator[str]:
    limits = [f"R at most {c.noise_ratio_limit:g} (worst input {_ratio(c.worst_input_ratio)})"]
    if c.systematic_limit is not None:
        limits.append(f"T at most {c.systematic_limit:.3g}")
    if c.num_changed_top1:
        limits.append(f"{c.num_changed_top1} predictions changed")
    size = f"relative error {c.diff.rel_l2:.2e}, float32 noise {c.noise_rel_l2:.2e}"
    yield f"{size}; {', '.join(limits)}"
    if c.precision is not None and c.precision.claimed != "float32":
        claim = f"{c.precision.ratio:.3g} times the noise of {c.precision.claimed}, as claimed"
        better = c.passed and c.noise_ratio <= c.noise_ratio_limit
        yield f"{claim}; it is better: float32" if better else claim
    yield from (f"not judged: {text}" for text in c.missing)


def _attribution(attribution: Attribution) -> str:
    """Return one line on the part of a faster arithmetic in the error."""
    fast, exact = attribution.fast, attribution.exact
    if not attribution.matters:
        return (
            f"{fast.options} makes no difference here: {fast.rel_l2:.1e}, {exact.rel_l2:.1e} with "
            f"{exact.options}"
        )
    name = "a faster arithmetic" if fast.found == "unknown" else precision_title(fast.found)
    remains = "" if exact.found == "unknown" else f", the size of {precision_title(exact.found)}"
    return (
        f"{fast.rel_l2:.1e} is {name} ({fast.options}); {exact.rel_l2:.1e} remains with "
        f"{exact.options}{remains}"
    )


# The subject of each layer of evidence.
_LAYERS = {
    "structure": "the wiring",
    "static": "the weights",
    "metadata": "what others go by",
    "proof": "the proof on the host",
    "node_local": "single layers",
    "conformance": "other ways to call it",
    "attribution": "its other arithmetic",
}


def _file_evidence(report: VerifyReport) -> Iterator[str]:
    if (structure := report.structure) is not None and structure.isomorphic:
        yield f"wiring: {structure.num_nodes} operators, as in the reference"
    if (static := report.static) is not None and static.layers:
        yield (
            f"weights: {len(static.layers)} layers within {static.max_ulp:.2f} ulp of their exact "
            f"values (limit {static.limit_ulp:.2g})"
        )
    yield from _first_few(report.reasons)
    yield from (f"no evidence on {_LAYERS[layer]}: {why}" for layer, why in report.missing.items())


def _first_few(reasons: Sequence[str]) -> Iterator[str]:
    """Yield the first reasons: faults further downstream follow from them."""
    yield from reasons[:_MOST_REASONS]
    if len(reasons) > _MOST_REASONS:
        yield f"and {len(reasons) - _MOST_REASONS} more (--json has them all)"


@_lines.register
def _selftest(report: SelftestReport) -> Lines:
    layers = ("structure", "static", "node_local", "end_to_end")

    def row(fault: PlantedFault) -> tuple[str, ...]:
        seen = ("caught" if layer in fault.caught_by else "" for layer in layers)
        fixed = ("miss" if name in fault.accepted_by else "" for name in report.tolerances)
        return (fault.name, *seen, fault.named or "", *fixed)

    columns = ("fault", "L0", "L1", "L2", "L3", "named", *report.tolerances)
    title = f"faults planted into {report.model}, {report.num_inputs} inputs"
    yield from table(title, columns, map(row, report.faults))
    caught = sum(fault.caught for fault in report.faults)
    yield f"{caught} of {len(report.faults)} faults caught"
    for name in report.tolerances:
        missed = sum(name in fault.accepted_by for fault in report.faults)
        alarms = sum(name not in control.accepted_by for control in report.controls)
        yield (f"  {name}: {missed} missed, {alarms} of {len(report.controls)} correct rejected")
    for control in report.controls:
        outcome = f"FAIL by {', '.join(control.caught_by)}" if control.caught_by else "PASS"
        yield f"correct model, {control.name}: {outcome}"
    if report.attacks:
        rows = [(a.name, a.verdict, a.found) for a in report.attacks]
        yield from table("back doors", ("hidden in", "verdict", "found"), rows)
        proved = sum(attack.verdict == "PROVED" for attack in report.attacks)
        yield f"{proved} of {len(report.attacks)} back doors PROVED"
    if report.not_applicable:
        yield f"no place here for: {'; '.join(report.not_applicable)}"


def _placement(session: Any) -> str:
    runtime = f"{session.runtime} {session.runtime_version}"
    if session.disabled_optimizers:
        wrong = ", ".join(session.disabled_optimizers)
        runtime += f", without its {wrong}, which changes models: disable it where you deploy"
    if session.nodes_by_provider is None:
        return f"ran on {session.active_providers[0]} ({runtime})"
    nodes = ", ".join(f"{count} on {name}" for name, count in session.nodes_by_provider.items())
    return f"nodes: {nodes} ({runtime})"


def _executed(placement: Placement) -> str:
    kernels = [f"{count} of {name}" for name, count in placement.executed.items()]
    line = f"kernels that ran: {', '.join(kernels) or 'none'}, {placement.num_copies} copies"
    if placement.strays:
        line += f"; elsewhere: {', '.join(placement.strays)}"
    return line


def _conformance(conformance: Conformance) -> Iterator[str]:
    for what, ratios in (
        ("batches", conformance.batches),
        ("graph levels", conformance.levels),
        ("stress", conformance.stress),
    ):
        if ratios:
            worst = _ratio(max(ratios.values()))
            yield (
                f"{what} {', '.join(ratios)}: at most {worst} noise units apart "
                f"(limit {conformance.limit:g})"
            )
    yield (
        "the same bits again in each run"
        if conformance.deterministic
        else f"not deterministic: runs differ by up to {conformance.max_run_to_run:.2e}"
    )
    yield from (f"not tried: {missing}" for missing in conformance.missing)


@_lines.register
def _manifest(manifest: Manifest) -> Lines:
    from resdeploy.bundle.folder import digest_of

    yield from () if manifest.export is None else manifest.export.source
    rows = [(f.path, _size(f.size_bytes), f.sha256[:16]) for f in manifest.files]
    yield from table(f"bundle {manifest.name}", ("file", "size", "sha256"), rows)
    yield f"digest {digest_of(manifest)}"
    if manifest.proof is not None:
        unproved = "; ".join(manifest.proof.unproved)
        yield f"model.onnx: AGREES, not shown: {unproved}" if unproved else "model.onnx: PROVED"
    if manifest.is_own_reference:
        yield (
            "its own reference: a check proves that a machine computes what the file says, not "
            "that the file is the network which was trained (--reference)"
        )


@_lines.register
def _check(report: CheckReport) -> Lines:
    yield f"{report.name}: {report.num_files} files intact"
    yield from _verify(report.verification)
    for tuned in report.tuned:
        yield from render_tuned(tuned)


@_lines.register
def _ship(report: ShipReport) -> Lines:
    rows = [
        (
            one.stage,
            one.outcome,
            "kept" if one.was_kept else _seconds(one.duration_s),
            "" if one.told_s is None else _seconds(one.told_s),
        )
        for one in report.stages
    ]
    yield from table(
        f"{report.source} to {report.output}", ("stage", "outcome", "took", "told"), rows
    )
    if report.told_s:
        yield (
            f"time: {_seconds(report.took_s)} for what was told as {_seconds(report.told_s)} "
            f"({report.took_s / report.told_s - 1:+.0%})"
        )
    yield f"shipped: {tuned_line(report.tuning)}"
    if report.tuning.best.evidence:
        yield f"evidence: {report.tuning.best.evidence}"
    yield from (f"not in a lower precision: {reason}" for reason in report.reasons)
    yield f"digest: {report.digest}"
    yield "on the device:"
    yield from (f"  {command}" for command in report.commands)
    yield pass_or_fail(report.passed)


def _seconds(duration_s: float) -> str:
    """Return a duration in seconds, in full from ten on."""
    return f"{duration_s:.1f} s" if duration_s < 10 else f"{duration_s:.0f} s"


@_lines.register
def _remote(report: RemoteReport) -> Lines:
    if len(report.devices) == 1:  # it can be shown in full
        (one,) = report.devices
        for record in filter(None, (one.check, one.bench, one.comparison, one.probe, one.tune)):
            yield from _lines(record)
    yield from render_remote(report)


@_lines.register
def _demo(report: DemoReport) -> Lines:
    rows = [(s.stage, s.outcome, f"{s.duration_s:.1f} s") for s in report.stages]
    yield from table("resdeploy demo", ("stage", "outcome", "time"), rows)
    yield from (f"{name:<12}{path}" for name, path in report.paths.items())
    yield pass_or_fail(report.passed)


def _ratio(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def _size(size_bytes: int) -> str:
    """Return a size in the unit that suits it; MB is 10^6 bytes."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"
