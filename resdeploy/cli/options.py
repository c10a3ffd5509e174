"""Options that several commands share."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource

from resdeploy.schema.recipes import SourceSpec
from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec
from resdeploy.session.providers import PROVIDERS

__all__ = [
    *("PATH", "POSITIVE", "Number", "Percent", "Points", "choice_of", "export_options"),
    *("force_option", "json_option", "numbers_option", "output_option", "providers_option"),
    *("session_options", "session_was_given", "sessions_options", "source_options"),
    *("target_option", "threads_option"),
]

PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A finite number of at least `min`; click's own range holds NaN, and infinity if open."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or refuse the text."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


class Points(Number):
    """Percentage points, as a fraction; the range is that of the points."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the fraction, or refuse the text."""
        return super().convert(value, param, ctx) / 100


class Percent(Points):
    """A percentage such as 3%, as a fraction."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the fraction, or refuse the text."""
        if not str(value).endswith("%"):
            self.fail(f"{value!r} is not a percentage such as 3%.", param, ctx)
        return super().convert(str(value).removesuffix("%"), param, ctx)


def _numbers(
    _context: Any,
    option: click.Parameter,
    text: str | None,
    form: str = "a list of numbers such as 1,8,32",
) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{text!r} is not {form}", param_hint=option.opts[0])
    return tuple(map(int, parts))


def numbers_option(
    flag: str, name: str, help_text: str, **settings: Any
) -> Callable[[Command], Command]:
    """Return an option that takes a list of whole numbers such as 1,8,32."""
    return click.option(
        flag, name, metavar="N[,N...]", callback=_numbers, help=help_text, **settings
    )


def choice_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an option that takes a name of `values`, and gives the value."""
    return {
        "type": click.Choice(list(values)),
        "callback": lambda _context, _option, name: None if name is None else values[name],
    }


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON record.")
force_option = click.option("--force", is_flag=True, help="Replace an existing output.")
target_option = click.option(
    "--for",
    "target",
    type=PATH,
    metavar="TARGET.JSON",
    help="The record that `resdeploy probe -o` wrote on the target.",
)


def _batch(_context: Any, _option: Any, text: str) -> int | Literal["dynamic"]:
    if text == "dynamic":
        return "dynamic"
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither dynamic nor a number", param_hint="--batch")
    return int(text)


def export_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about the form of an exported model."""
    return _with_options(
        command,
        click.option(
            "--opset", type=int, help="ONNX operator set.  [default: 18, or the target's]"
        ),
        target_option,
        click.option(
            "--batch",
            default="dynamic",
            show_default=True,
            callback=_batch,
            help="dynamic, or a number of samples.",
        ),
        click.option(
            "--preprocess",
            "embed_preprocess",
            default="outside",
            show_default=True,
            help="embed: the model takes pixels, uint8 NHWC, of its own image size.",
            **choice_of({"outside": False, "embed": True}),
        ),
    )


# Options of every command that runs a model for its outputs.
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
        type=POSITIVE if choices is None else click.Choice(choices),
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
    """Add these fields of a `SessionSpec` as options; the command gets it as `provider`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_session(**values: Any) -> Any:
            session = SessionSpec(**{name: values.pop(name) for name in names})
            return command(provider=session, **values)

        return _with_options(with_session, *map(_click_option, names))

    return decorate


def _with_options(command: Callable[..., Any], *options: Any) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def sessions_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of one session on each of several providers; the command gets `provider`."""

    @functools.wraps(command)
    def with_sessions(*, providers: tuple[str, ...], provider: SessionSpec, **others: Any) -> Any:
        sessions = [dataclasses.replace(provider, provider=name) for name in providers]
        return command(provider=sessions, **others)

    others = [name for name in _ANSWERING if name != "provider"]
    return providers_option()(session_options(others)(with_sessions))


def session_was_given() -> bool:
    """Return True if the command line has an option of the session."""
    context = click.get_current_context()
    return any(
        context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in SESSION_OPTIONS
    )


def output_option(help_text: str) -> Callable[[Command], Command]:
    """Return the option `-o`, a path to write."""
    return click.option("-o", "--output", "out", required=True, type=PATH, help=help_text)


def _arch_options(_context: Any, option: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option.opts[0])
    return dict(text.split("=", 1) for text in texts)


def _shape(context: Any, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    return _numbers(context, option, text, "a shape such as 3,224,224") or None


# By the field of `SourceSpec`.
_SOURCE_OPTIONS = {
    "arch": click.option("--arch", help="The network that weights from elsewhere belong to."),
    "options": click.option(
        "--arch-option",
        "options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_arch_options,
        help="An option of --arch, such as shortcut=B.",
    ),
    "factory": click.option(
        "--model",
        "factory",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="A function that returns a torch module of yours; its code is run.",
    ),
    "input_shape": click.option(
        "--input",
        "input_shape",
        metavar="C,H,W",
        callback=_shape,
        help="Shape of one sample, for --model, other image sizes, and open ones in ONNX.",
    ),
    "recipe": click.option(
        "--recipe", help="Take preprocessing and labels from this recipe, by name or path."
    ),
}


def source_options(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of a trained model; the command gets a `SourceSpec` called `name`.

    Its path is the parameter of that name, if the command has one.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_source(**values: Any) -> Any:
            path = values.pop(name, None)
            fields = {field: values.pop(field) for field in _SOURCE_OPTIONS}
            spec = SourceSpec(path=None if path is None else str(path), **fields)
            return command(**{name: spec}, **values)

        return _with_options(with_source, *_SOURCE_OPTIONS.values())

    return decorate
