"""Options that several commands share."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from resdeploy.schema.recipes import SourceSpec

__all__ = [
    "Number",
    "Percent",
    "SourceOptions",
    "force_option",
    "json_option",
    "one_provider_option",
    "openvino_precision_option",
    "output_option",
    "preprocess_option",
    "provider_option",
    "session_was_given",
    "source_options",
    "target_option",
    "tf32_option",
    "threads_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A finite number of at least `min`; click's own range holds NaN, and infinity if open."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or refuse the text."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


class Percent(Number):
    """A percentage such as 3%, as a fraction; the range is that of the percentage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the fraction, or refuse the text."""
        if not str(value).endswith("%"):
            self.fail(f"{value!r} is not a percentage such as 3%.", param, ctx)
        return super().convert(str(value).removesuffix("%"), param, ctx) / 100


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON record.")
force_option = click.option("--force", is_flag=True, help="Replace an existing output.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of ONNX Runtime.  [default: its choice]"
)
provider_option = click.option(
    "--provider",
    "providers",
    multiple=True,
    default=("cpu",),
    show_default=True,
    help="Where to run: cpu, cuda, openvino. May be given several times.",
)

one_provider_option = click.option(
    "--provider", default="cpu", show_default=True, help="Where to run: cpu, cuda, openvino."
)

target_option = click.option(
    "--for",
    "target",
    type=click.Path(path_type=Path),
    metavar="TARGET.JSON",
    help="What `resdeploy probe -o` wrote on the target.",
)

tf32_option = click.option(
    "--tf32", is_flag=True, help="On CUDA, let convolutions round their inputs to 10 bits."
)


openvino_precision_option = click.option(
    "--openvino-precision",
    "precision_hint",
    type=click.Choice(["default", "f32", "bf16"]),
    default="default",
    show_default=True,
    help="Arithmetic of openvino; its own choice is bfloat16 on CPUs that have it.",
)


# By parameter, the options that say how a session is opened.
_SESSION_PARAMETERS = (
    *("provider", "threads", "graph_level", "spinning", "tf32", "precision_hint"),
    *("nhwc", "cuda_graph"),
)


def session_was_given() -> bool:
    """Return whether the user said anything about how to open the session."""
    context = click.get_current_context()
    return any(
        context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in _SESSION_PARAMETERS
    )


preprocess_option = click.option(
    "--preprocess",
    type=click.Choice(["outside", "embed"]),
    default="outside",
    show_default=True,
    help="embed: the model takes pixels, uint8 NHWC, of its own image size.",
)


def output_option(help_text: str) -> Callable[[Command], Command]:
    """Return the option `-o`, a path to write."""
    return click.option(
        "-o", "--output", required=True, type=click.Path(path_type=Path), help=help_text
    )


class SourceOptions:
    """What the user said, beside its path, about the trained model to work on."""

    def __init__(
        self,
        *,
        arch: str | None,
        arch_options: tuple[str, ...],
        factory: str | None,
        input_shape: str | None,
        recipe: str | None,
    ) -> None:
        self._spec = SourceSpec(
            arch=arch,
            options=dict(map(_parse_option, arch_options)),
            factory=factory,
            input_shape=None if input_shape is None else _parse_shape(input_shape),
            recipe=recipe,
        )

    @property
    def given(self) -> bool:
        """Whether any of the options was used."""
        return self._spec != SourceSpec()

    def __call__(self, path: Path | None) -> SourceSpec:
        """Return the request for the model at `path`, or for the factory's where that is None."""
        return dataclasses.replace(self._spec, path=None if path is None else str(path))


_SOURCE_OPTIONS = (
    click.option("--arch", help="The network that weights from elsewhere belong to."),
    click.option(
        "--arch-option",
        "arch_options",
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of --arch, such as shortcut=B.",
    ),
    click.option(
        "--model",
        "factory",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="A function that returns a torch module of yours; its code is run.",
    ),
    click.option(
        "--input",
        "input_shape",
        metavar="C,H,W",
        help="Shape of one sample, for --model, other image sizes, and open ones in ONNX.",
    ),
    click.option(
        "--recipe", help="Take preprocessing and labels from this recipe, by name or path."
    ),
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a trained model is; the command gets them as `source_of`."""

    @functools.wraps(command)
    def with_source(
        *,
        arch: str | None,
        arch_options: tuple[str, ...],
        factory: str | None,
        input_shape: str | None,
        recipe: str | None,
        **others: Any,
    ) -> Any:
        source_of = SourceOptions(
            arch=arch,
            arch_options=arch_options,
            factory=factory,
            input_shape=input_shape,
            recipe=recipe,
        )
        return command(source_of=source_of, **others)

    decorated: Callable[..., Any] = with_source
    for option in reversed(_SOURCE_OPTIONS):
        decorated = option(decorated)
    return decorated


def _parse_option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--arch-option")
    return name, value


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise click.BadParameter(f"{text!r} is not a shape such as 3,224,224", param_hint="--input")
    return shape
