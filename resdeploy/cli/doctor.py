"""`resdeploy doctor`."""

import click

from resdeploy.cli.options import json_option, providers_option
from resdeploy.errors import EnvironmentLacksError


@click.command()
@providers_option()
@json_option
def doctor(providers: tuple[str, ...], as_json: bool) -> None:
    """Look this installation over, and give a fix for each fault. Changes nothing.

    Python, the packages and their versions, the temporary folder, the runtime (two wheels at once,
    a damaged one, one for another CPU), and whether each --provider starts and computes. Exits
    with 3 if a requested provider cannot run.

    \b
    Example:
        resdeploy doctor
        resdeploy doctor --provider cuda --json
    """
    from resdeploy.cli.render import emit
    from resdeploy.machine.doctor import examine

    report = examine(providers)
    emit(report, as_json=as_json)
    if not report.passed:
        raise SystemExit(EnvironmentLacksError.exit_code)
