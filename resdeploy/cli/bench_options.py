"""How the options of `resdeploy bench` are read."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

import click

from resdeploy.schema.benchmarks import LoadgenSpec
from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec

__all__ = ["SESSION_FIELDS", "loadgen_spec", "numbers", "with_options"]

# By what --against-option calls it: the field of a `SessionSpec`.
SESSION_FIELDS = {option.flag[2:]: name for name, option in SESSION_OPTIONS.items()}


def numbers(_context: Any, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Return the whole numbers of a list such as 1,8,32."""
    if text is None:
        return ()
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(
            f"{text!r} is not a list of numbers such as 1,8,32", param_hint=option.opts[0]
        )
    return found


def loadgen_spec(
    wanted: bool, min_duration_s: float | None, target_latency_ms: float | None
) -> LoadgenSpec | None:
    """Return what --loadgen and its own options ask for."""
    changes: dict[str, Any] = {}
    if min_duration_s is not None:
        changes["min_duration_s"] = min_duration_s
    if target_latency_ms is not None:
        changes["target_latency_ms"] = target_latency_ms
    if changes and not wanted:
        raise click.UsageError("--min-duration and --target-latency are options of --loadgen.")
    return LoadgenSpec(**changes) if wanted else None


def with_options(session: SessionSpec, options: tuple[str, ...]) -> SessionSpec:
    """Return the session with NAME=VALUE options, named as those of the command."""
    changes: dict[str, Any] = {}
    for text in options:
        name, _, written = text.partition("=")
        field = SESSION_FIELDS.get(name, "")
        value = _value(SESSION_OPTIONS[field].kind, written) if field else None
        if value is None:
            forms = (f"{n}={_form(SESSION_OPTIONS[f].kind)}" for n, f in SESSION_FIELDS.items())
            raise click.BadParameter(
                f"{text!r} is not one of {', '.join(forms)}", param_hint="--against-option"
            )
        changes[field] = value
    return dataclasses.replace(session, **changes)


def _value(kind: Any, text: str) -> Any:
    """Return the value of a field's type that a text means; None if it means none."""
    if kind is bool:
        return {"on": True, "off": False}.get(text)
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else None
    if kind is str:
        return text or None
    return int(text) if text.isdecimal() else None


def _form(kind: Any) -> str:
    """Return what a field's type is written as."""
    if kind is bool:
        return "on|off"
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return "NAME" if kind is str else "N"
