"""Probes, findings and predictions as text."""

import click

from resdeploy.cli.tables import print_table
from resdeploy.machine.compatibility import readable_by
from resdeploy.schema.bundles import PredictReport
from resdeploy.schema.machines import DoctorReport, ProbeReport

__all__ = ["render_doctor", "render_predict", "render_probe"]


def render_predict(report: PredictReport) -> None:
    """Print the classes of each input, the likeliest first."""
    rows = []
    for prediction in report.predictions:
        for place, scored in enumerate(prediction.classes):
            label = str(scored.index) if scored.label is None else scored.label
            rows.append(
                (prediction.input if place == 0 else "", label, f"{scored.probability:.4%}")
            )
    session = report.session
    title = f"{report.name} on {session.spec.provider}"
    print_table(title, ("input", "class", "probability"), rows)
    click.echo(f"bundle {report.digest[:16]}, {session.runtime} {session.runtime_version}")


def render_probe(report: ProbeReport) -> None:
    """Print the machine, its providers, and what its runtime reads."""
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
    for name, text in lines.items():
        click.echo(f"{name:<11}{text}")
    for lack in report.lacks:
        click.echo(f"{'lacks':<11}{lack}")
    for probed in report.providers:
        click.echo(f"{probed.provider:<11}{'starts' if probed.starts else probed.why_not}")
        if probed.fix is not None:
            click.echo(f"{'':<11}fix: {probed.fix}")


def render_doctor(report: DoctorReport) -> None:
    """Print every finding, with its fix, and the verdict."""
    for finding in report.findings:
        click.echo(f"{finding.verdict:<8}{finding.subject}: {finding.what}")
        if finding.fix is not None:
            click.echo(f"{'':8}fix: {finding.fix}")
    num = sum(finding.verdict == "fault" for finding in report.findings)
    asked = ", ".join(report.providers)
    faults = f"{num} fault{'s' if num > 1 else ''} for {asked}"
    click.echo(f"all is well for {asked}" if report.passed else faults)
