"""Options that several commands share."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from resdeploy.cli.parameter_types import ARCHITECTURE, FACTORY, OUTPUT, PROVIDER, RECIPE
from resdeploy.cli.shapes import parse_shape
from resdeploy.errors import EXIT_CHECK_FAILED
from resdeploy.machine.boards import BOARDS
from resdeploy.schema.codec import dump_json
from resdeploy.schema.files import (
    IMAGE_SIDES,
    InputSpec,
    SourceSpec,
    UsualPreprocess,
    stated_inputs,
)
from resdeploy.schema.quants import QuantizedPrecision
from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec
from resdeploy.session.providers import PROVIDERS

__all__ = [
    *("PATH", "POSITIVE", "PRECISIONS", "Emit", "Number", "Percent", "choice_of"),
    *("export_options", "precisions_option", "work_option"),
    *("force_option", "gathered", "json_option", "max_drop_option", "numbers_option"),
    *("accept_option", "output_option", "providers_option", "session_options", "session_was_given"),
    *("sessions_options", "source_options", "target_option", "threads_option"),
]

PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
Emit = Callable[..., None]
PRECISIONS: Mapping[str, QuantizedPrecision] = {
    "int8": "int8",
    "fp16": "float16",
    "bf16": "bfloat16",
}
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


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


def numbers_option(flag: str, name: str, help_text: str, **settings: Any) -> Decorator:
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


def emit(
    record: Any,
    *,
    as_json: bool,
    passed: bool | None = None,
    exit_code: int = EXIT_CHECK_FAILED,
    note: str = "",
) -> None:
    """Print a record to stdout, as JSON or for a person, and exit with a code if it failed.

    `passed` is for a record whose verdict is not its own; `note` follows a failure on stderr.
    """
    if as_json:
        click.echo(dump_json(record))
    else:
        from resdeploy.cli.render import render

        render(record)
    if passed is None:
        passed = getattr(record, "passed", True)
    if not passed and note:
        click.echo(note, err=True)
    if not as_json:
        from resdeploy.cli.next_step import next_step

        if (line := next_step(click.get_current_context(), passed=passed)) is not None:
            click.echo(f"next: {line}", err=True)
    if not passed:
        raise SystemExit(exit_code)


# The command gets the function that prints its record.
json_option = click.option(
    "--json",
    "emit",
    is_flag=True,
    callback=lambda _context, _option, as_json: functools.partial(emit, as_json=as_json),
    help="Print one JSON record.",
)
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


def _sides(_context: Any, option: click.Parameter, text: str) -> tuple[str, ...]:
    sides = tuple(text.split(",")) if text else ()
    if not {*sides} <= {*IMAGE_SIDES}:
        raise click.BadParameter(
            f"{text!r} is not of {', '.join(IMAGE_SIDES)}", param_hint=option.opts[0]
        )
    return sides


def export_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about the form of an exported model."""
    opset = click.option(
        "--opset", type=int, help="ONNX operator set.  [default: 18, or the target's]"
    )
    batch = click.option(
        "--batch", default="dynamic", callback=_batch, help="dynamic, or a number of samples."
    )
    dynamic = click.option(
        "--dynamic",
        metavar="height,width",
        default="",
        callback=_sides,
        help="Sides of images to leave open too.",
    )
    preprocess = click.option(
        "--preprocess",
        "embed_preprocess",
        default="outside",
        help="embed: the model takes pixels, uint8 NHWC, of its own image size.",
        **choice_of({"outside": False, "embed": True}),
    )
    board = click.option(
        "--for",
        "target",
        type=PATH,
        metavar="NAME|TARGET.JSON",
        help=f"In a form that this reads: {', '.join(BOARDS)}, onnxruntime-1.18; or the target of "
        "the record that `resdeploy probe -o` wrote there.",
    )
    layout = click.option(
        "--layout",
        default="NCHW",
        type=click.Choice(["NCHW", "NHWC"], case_sensitive=False),
        help="The axes of the file's images.",
    )
    inputs = click.option(
        "--input-name",
        "input_names",
        callback=_names,
        help="Of the file, in its order, as in data or left,right.  [default: input]",
    )
    outputs = click.option(
        "--output-name",
        "output_names",
        callback=_names,
        help="Of the file, in its order.  [default: logits]",
    )
    return opset(board(batch(dynamic(layout(inputs(outputs(preprocess(command))))))))


def _names(_context: Any, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = () if text is None else tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise click.BadParameter(f"{text!r} is not a list of names", param_hint=option.opts[0])
    return names


def gathered(name: str, gather: Callable[..., Any], options: Mapping[str, Decorator]) -> Decorator:
    """Add options, by name; the command gets what `gather` makes of their values as `name`.

    A parameter of the command that has this name already goes to `gather` too.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathering(**values: Any) -> Any:
            taken = {one: values.pop(one) for one in (name, *options) if one in values}
            return command(**{name: gather(**taken)}, **values)

        decorated: Callable[..., Any] = gathering
        for option in reversed([*options.values()]):
            decorated = option(decorated)
        return decorated

    return decorate


# Options of every command that runs a model for its outputs.
_ANSWERING = tuple(
    name
    for name, option in SESSION_OPTIONS.items()
    if option.changes_answers or name == "num_threads"
)


def _click_option(name: str) -> Decorator:
    """Return the option of the command line for a field of `SessionSpec`."""
    option = SESSION_OPTIONS[name]
    flag, settings = option.flag, {"default": option.default, "help": option.help}
    if name == "provider":
        settings |= {"help": _PROVIDER_HELP, "type": PROVIDER, "metavar": "NAME"}
    elif option.kind is bool:
        settings["is_flag"] = True
        flag += f"/--no-{flag[2:]}" if option.default else ""
    elif get_origin(option.kind) is Literal:
        settings["type"] = click.Choice(get_args(option.kind))
    else:
        settings["type"] = POSITIVE
    return click.option(flag, name, **settings)


_PROVIDER_HELP = f"{SESSION_OPTIONS['provider'].help}: {', '.join(PROVIDERS)}."
threads_option = _click_option("num_threads")
accept_option = click.option(
    "--accept",
    type=click.Choice(["proof", "outputs"]),
    default="proof",
    help="The least that passes: PROVED, or outputs that agree.",
)


def providers_option(*, default: tuple[str, ...] = ("cpu",), remark: str = "") -> Decorator:
    """Return `--provider` of a command that asks several, in turn; it gets them as `providers`."""
    return click.option(
        SESSION_OPTIONS["provider"].flag,
        "providers",
        multiple=True,
        type=PROVIDER,
        metavar="NAME",
        default=default,
        help=f"{_PROVIDER_HELP} May be given several times.{remark}",
    )


def session_options(names: Sequence[str] = _ANSWERING) -> Decorator:
    """Add these fields of a `SessionSpec` as options; the command gets it as `provider`."""
    return gathered("provider", SessionSpec, {name: _click_option(name) for name in names})


def _sessions(providers: tuple[str, ...], **settings: Any) -> list[SessionSpec]:
    return [SessionSpec(provider=name, **settings) for name in providers]


# Those of one session on each of several providers; the command gets the list as `provider`.
sessions_options = gathered(
    "provider",
    _sessions,
    {
        "providers": providers_option(),
        **{name: _click_option(name) for name in _ANSWERING if name != "provider"},
    },
)


def session_was_given() -> bool:
    """Return True if the command line has an option of the session."""
    context = click.get_current_context()
    return any(
        context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in SESSION_OPTIONS
    )


def output_option(help_text: str, *, required: bool = True, **settings: Any) -> Decorator:
    """Return the option `-o`, a path to write."""
    return click.option(
        "-o", "--output", "out", required=required, help=help_text, **{"type": OUTPUT, **settings}
    )


def max_drop_option(help_text: str) -> Decorator:
    """Return the option `--max-drop`, a budget for the accuracy."""
    return click.option("--max-drop", type=Points(min=0, max=100), metavar="POINTS", help=help_text)


def _precisions(_context: Any, _option: Any, text: str | None) -> tuple[QuantizedPrecision, ...]:
    names = () if text is None else tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in PRECISIONS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(PRECISIONS)}")
    return tuple(PRECISIONS[name] for name in names)


precisions_option = click.option(
    "--precision",
    "precisions",
    metavar="P[,P...]",
    callback=_precisions,
    help="Those to make: int8, fp16, bf16.  [default: int8; fp16 where a provider computes in it]",
)


def work_option(help_text: str) -> Decorator:
    """Return the option `--work`, a folder from which a run that was stopped goes on."""
    return click.option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help=help_text,
    )


def _arch_options(_context: Any, option: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option.opts[0])
    return dict(text.split("=", 1) for text in texts)


_TYPES = ("float32", "int64", "int32", "bool")
_INPUT_FORM = "a shape such as 3,224,224, left=3,224,224, or ids=int64:128"


def _inputs(_context: Any, option: click.Parameter, texts: Sequence[str]) -> tuple[InputSpec, ...]:
    found = []
    for text in texts:
        name, equals, rest = text.rpartition("=")
        dtype, colon, sizes = rest.rpartition(":")
        if (equals and not name) or (colon and dtype not in _TYPES):
            types = f", with a type of {', '.join(_TYPES)}" if colon else ""
            raise click.BadParameter(
                f"{text!r} is not {_INPUT_FORM}{types}", param_hint=option.opts[0]
            )
        shape: tuple[int, ...] = ()
        if sizes or not colon:
            shape = parse_shape(sizes, flag=option.opts[0], form=_INPUT_FORM)
        found.append(InputSpec(name=name, shape=shape, dtype=dtype or "float32"))
    return tuple(found)


def _reals(_context: Any, option: click.Parameter, text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise click.BadParameter(
            f"{text!r} is not a list of numbers such as 0.5,0.5,0.5", param_hint=option.opts[0]
        )
    return values


def _crop(context: Any, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    sizes = _numbers(context, option, text, "a size such as 224, or 224,160 for height and width")
    if len(sizes) > 2:
        raise click.BadParameter(f"{text!r} has more than two numbers", param_hint=option.opts[0])
    return sizes


# By the field of `SourceSpec`.
_SOURCE_OPTIONS = {
    "arch": click.option(
        "--arch",
        type=ARCHITECTURE,
        metavar="NAME",
        help="The network of weights from elsewhere.  [default: found by their shapes]",
    ),
    "weights": click.option(
        "--weights",
        metavar="raw|ema|PREFIX",
        help="Which of several sets of weights in a file is meant.  [default: the averaged ones of "
        "timm's and torchvision's training files; asked for others]",
    ),
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
        type=FACTORY,
        metavar="PACKAGE.MODULE:NAME",
        help="A function, class or instance of a torch module, also FILE.py:NAME, or a "
        "TorchScript file; its code is run.",
    ),
    "input_shapes": click.option(
        "--input",
        "input_shapes",
        metavar="[NAME=][TYPE:]C,H,W",
        multiple=True,
        callback=_inputs,
        help="Shape of one sample, for --model, other image sizes, and open ones in ONNX; of "
        "several inputs, each by its name in forward, or in order.",
    ),
    "recipe": click.option(
        "--recipe",
        type=RECIPE,
        metavar="NAME|PATH",
        help="Take preprocessing and labels from this recipe, by name or path.",
    ),
    "preprocess_as": click.option(
        "--preprocess-as",
        type=click.Choice(get_args(UsualPreprocess)),
        help="From a picture to an input, as usual for this data or scale.",
    ),
    "mean": click.option(
        "--mean",
        metavar="R,G,B",
        callback=_reals,
        help="Mean of the pixels in 0...1, or in 0...255 if above 1.",
    ),
    "std": click.option(
        "--std", metavar="R,G,B", callback=_reals, help="Their deviation, in the same units."
    ),
    "resize": click.option(
        "--resize", type=POSITIVE, metavar="PIXELS", help="The shorter side before the crop."
    ),
    "crop": click.option(
        "--crop", metavar="H[,W]", callback=_crop, help="The size cut out of the centre."
    ),
    "labels": click.option(
        "--labels",
        metavar="FILE|FOLDER|imagenet",
        help="Class names: .txt, .json or .csv, or a folder of class folders.",
    ),
}


def source_options(name: str) -> Decorator:
    """Add the options of a trained model; the command gets a `SourceSpec` called `name`.

    Its path is the parameter of that name, if the command has one.
    """

    def gather(**values: Any) -> SourceSpec:
        path = values.pop(name, None)
        asked = stated_inputs(values.pop("input_shapes"))
        return SourceSpec(path=None if path is None else str(path), **values, **asked)

    return gathered(name, gather, _SOURCE_OPTIONS)
