"""`resdeploy doctor`."""

import click

from resdeploy.cli.command import Command
from resdeploy.cli.options import Emit, json_option, providers_option
from resdeploy.errors import EnvironmentLacksError


@click.command(cls=Command)
@providers_option()
@json_option
def doctor(providers: tuple[str, ...], emit: Emit) -> None:
    """Look this installation over, and give a fix for each fault. Changes nothing.

    Python, the packages and their versions, the temporary folder, the runtime (two wheels at once,
    a damaged one, one for another CPU), and whether each --provider starts and computes. Exits
    with 3 if a requested provider cannot run.

    \b
    Example:
        resdeploy doctor
        resdeploy doctor --provider cuda --json
    """
    from resdeploy.machine.doctor import examine

    emit(examine(providers), exit_code=EnvironmentLacksError.exit_code)
