"""Options that several commands share."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource

from resdeploy.schema.recipes import SourceSpec
from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec
from resdeploy.session.providers import PROVIDERS

__all__ = [
    "Number",
    "Percent",
    "SourceOptions",
    "force_option",
    "json_option",
    "output_option",
    "preprocess_option",
    "providers_option",
    "session_options",
    "session_was_given",
    "sessions_options",
    "source_options",
    "target_option",
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
target_option = click.option(
    "--for",
    "target",
    type=click.Path(path_type=Path),
    metavar="TARGET.JSON",
    help="What `resdeploy probe -o` wrote on the target.",
)

# Of every command that runs a model to judge it, or for what it says.
_ANSWERING = tuple(
    name
    for name, option in SESSION_OPTIONS.items()
    if option.changes_answers or name == "num_threads"
)


def _click_option(name: str) -> Callable[[Command], Command]:
    """Return the option of the command line for a field of `SessionSpec`."""
    option = SESSION_OPTIONS[name]
    if name == "provider":
        help_text = f"{option.help}: {', '.join(PROVIDERS)}."
        return click.option(option.flag, default=option.default, show_default=True, help=help_text)
    if option.kind is bool:
        off = f"/--no-{option.flag[2:]}" if option.default else ""
        return click.option(
            f"{option.flag}{off}",
            name,
            is_flag=True,
            default=option.default,
            show_default=option.default,
            help=option.help,
        )
    choices = get_args(option.kind) if get_origin(option.kind) is Literal else None
    return click.option(
        option.flag,
        name,
        type=click.IntRange(min=1) if choices is None else click.Choice(choices),
        default=option.default,
        show_default=choices is not None,
        help=option.help,
    )


def providers_option(
    *, default: tuple[str, ...] = ("cpu",), remark: str = ""
) -> Callable[[Command], Command]:
    """Return `--provider` of a command that asks several, in turn; it gets them as `providers`."""
    option = SESSION_OPTIONS["provider"]
    return click.option(
        option.flag,
        "providers",
        multiple=True,
        default=default,
        show_default=bool(default),
        help=f"{option.help}: {', '.join(PROVIDERS)}. May be given several times.{remark}",
    )


threads_option = _click_option("num_threads")


def session_options(
    names: Sequence[str] = _ANSWERING,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add these fields of a `SessionSpec` as options; the command gets it as `session`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_session(**values: Any) -> Any:
            session = SessionSpec(**{name: values.pop(name) for name in names})
            return command(session=session, **values)

        decorated: Callable[..., Any] = with_session
        for name in reversed(names):
            decorated = _click_option(name)(decorated)
        return decorated

    return decorate


def sessions_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of one session on each of several providers; the command gets `sessions`."""

    @functools.wraps(command)
    def with_sessions(*, providers: tuple[str, ...], session: SessionSpec, **others: Any) -> Any:
        sessions = [dataclasses.replace(session, provider=name) for name in providers]
        return command(sessions=sessions, **others)

    others = [name for name in _ANSWERING if name != "provider"]
    return providers_option()(session_options(others)(with_sessions))


def session_was_given() -> bool:
    """Return whether the user said anything about how to open the session."""
    context = click.get_current_context()
    return any(
        context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in SESSION_OPTIONS
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
