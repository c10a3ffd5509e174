"""The command line: parse, call, render. One file per command; heavy imports inside the command."""

import os
import sys
import traceback
from typing import Any

import click

from resdeploy import __version__
from resdeploy.cli.bench import bench
from resdeploy.cli.bundle import bundle
from resdeploy.cli.check import check
from resdeploy.cli.demo import demo
from resdeploy.cli.doctor import doctor
from resdeploy.cli.evaluate import evaluate
from resdeploy.cli.export import export
from resdeploy.cli.fold_bn import fold_bn
from resdeploy.cli.predict import predict
from resdeploy.cli.probe import probe
from resdeploy.cli.quantize import quantize
from resdeploy.cli.selftest import selftest
from resdeploy.cli.ship import ship
from resdeploy.cli.train import train
from resdeploy.cli.tune import tune
from resdeploy.cli.verify import verify
from resdeploy.errors import EXIT_BUG, EXIT_INTERRUPTED, MissingExtraError, ReportedError

__all__ = ["cli", "main"]

# The packages of each extra, for "No module named …" on a machine that has less installed.
_EXTRA_OF = {
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors"), "export"),
    **dict.fromkeys(("sklearn", "mnist1d"), "train"),
    "onnxruntime": "cpu",
    "asyncssh": "remote",
}


_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


class _ReportingGroup(click.Group):
    """Turns errors into messages and exit codes, for every command alike."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted; nothing half done was kept", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except ReportedError as error:
            _report(ctx, error)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in _EXTRA_OF:
                _report(ctx, MissingExtraError(package, extra=_EXTRA_OF[package]))
            _report_bug(ctx)
        except BrokenPipeError:
            # The reader closed the pipe; without this, Python complains once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except Exception:  # the last line of defence
            _report_bug(ctx)


@click.group(cls=_ReportingGroup, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="resdeploy")
def cli() -> None:
    """From a trained ResNet to a model you can prove on the device.

    \b
    Exit codes:
        0   passed
        1   a check failed: numbers differ, or a fold is incomplete under --strict
        2   the input or the request is wrong
        3   this machine lacks what was asked for
        70  a bug in resdeploy
        130 interrupted
    """


_MAKING = (train, fold_bn, export, quantize, verify, selftest, bench, bundle, ship)
_ON_THE_TARGET = (check, predict, evaluate, tune, probe, doctor)
for _command in (*_MAKING, *_ON_THE_TARGET, demo):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    cli(prog_name="resdeploy")


def _report(ctx: click.Context, error: ReportedError) -> None:
    click.echo(f"error: {error}", err=True)
    ctx.exit(error.exit_code)


def _report_bug(ctx: click.Context) -> None:
    click.echo(traceback.format_exc(), err=True, nl=False)
    click.echo("error: this is a bug in resdeploy; please report the lines above", err=True)
    ctx.exit(EXIT_BUG)
