"""The command line: parse, call, render. One file per command; heavy imports inside the command."""

import importlib
import os
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

import click

from resdeploy import __version__
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


# The commands by the heading they stand under in the help, each with its line there, so that the
# help of the program imports none of them.
_HELP = {
    "Make a model": {
        "train": "Train a network of the zoo, or by a recipe of yours.",
        "export": "Fold a trained model into one ONNX file, and check it.",
        "fold-bn": "Fold every BatchNorm that may be folded.",
        "verify": "Prove that an ONNX file computes what was trained.",
        "quantize": "Make int8, float16 or bfloat16 of it, within a budget.",
        "tune": "Find the fastest way to run it on this machine.",
        "bench": "Time it: latency, throughput, one model against another.",
        "bundle": "Pack it for a device, with its proof.",
        "ship": "All of that in one go, within a budget.",
    },
    "On the device": {
        "check": "Prove a bundle again, here or over SSH.",
        "predict": "Name the likeliest classes of images.",
        "evaluate": "Measure the accuracy, with its interval.",
        "probe": "Report what this machine can run.",
        "doctor": "Look the installation over, with a fix for each fault.",
    },
    "Try it": {
        "demo": "All of it on real digits, in a minute.",
        "selftest": "Plant faults into a model of yours, and see each caught.",
    },
}


class _Commands(MutableMapping[str, click.Command]):
    """The commands by name, each imported when it is looked up."""

    def __init__(self) -> None:
        self._found: dict[str, click.Command | None] = dict.fromkeys(
            name for names in _HELP.values() for name in names
        )

    def __getitem__(self, name: str) -> click.Command:
        if (command := self._found[name]) is None:
            python_name = name.replace("-", "_")
            module = importlib.import_module(f"{__name__}.{python_name}")
            command = self._found[name] = getattr(module, python_name)
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class _ReportingGroup(click.Group):
    """Turns errors into messages and exit codes, for every command alike."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in the order of use, without importing them."""
        for heading, lines in _HELP.items():
            with formatter.section(heading):
                formatter.write_dl([*lines.items()])

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


@click.group(cls=_ReportingGroup, commands=_Commands(), context_settings=_SETTINGS)
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


def main() -> None:
    """Run the command line."""
    cli(prog_name="resdeploy")


def _report(ctx: click.Context, error: ReportedError) -> None:
    click.echo(f"error: {error}", err=True)
    ctx.exit(error.exit_code)


def _report_bug(ctx: click.Context) -> None:
    import traceback

    click.echo(traceback.format_exc(), err=True, nl=False)
    click.echo("error: this is a bug in resdeploy; please report the lines above", err=True)
    ctx.exit(EXIT_BUG)
