"""Evidence that catches each planted fault, in four networks, against fixed tolerances.

python benchmarks/verify/selftest.py --resnet20 resnet20.th --json selftest.json
"""

import json
from pathlib import Path

import click
import torch
from null import make_network

from resdeploy.api.selftest import selftest
from resdeploy.cli.render import render
from resdeploy.export.source import load_source
from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json
from resdeploy.schema.recipes import SourceSpec


@click.command()
@click.option("--resnet20", type=click.Path(path_type=Path), help="Weights of a real ResNet-20.")
@click.option("--num-inputs", default=8, show_default=True)
@click.option("--attack", is_flag=True, help="Plant back doors, too.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(resnet20: Path | None, num_inputs: int, attack: bool, json_path: Path | None) -> None:
    """Run the self-test on each network."""
    torch.set_num_threads(1)
    environment = read_environment()
    sources = [make_network(arch, 0) for arch in ("resnet18", "resnet50", "residual_mlp")]
    if resnet20 is not None:
        sources.append(load_source(SourceSpec(path=str(resnet20), arch="cifar_resnet20")))
    reports = []
    for source in sources:
        report = selftest(source, num_inputs=num_inputs, attack=attack, num_threads=1)
        render(report)
        reports.append(report)
    if json_path is not None:
        record = {
            "environment": to_json(environment),
            "summary": {
                report.model: {
                    "faults": len(report.faults),
                    "caught": sum(fault.caught for fault in report.faults),
                    "attacks": len(report.attacks),
                    "attacks_proved": sum(a.verdict == "PROVED" for a in report.attacks),
                    "false_alarms": sum(bool(control.caught_by) for control in report.controls),
                    "missed_by": {
                        name: sum(name in fault.accepted_by for fault in report.faults)
                        for name in report.tolerances
                    },
                }
                for report in reports
            },
            "reports": [to_json(report) for report in reports],
        }
        json_path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
