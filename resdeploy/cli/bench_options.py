"""The options of `resdeploy bench` that need reading."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

import click

from resdeploy.schema.benchmarks import LoadgenSpec
from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec

__all__ = ["SESSION_FIELDS", "loadgen_spec", "with_options"]

# The field of a `SessionSpec` by its name in --against-option.
SESSION_FIELDS = {option.flag[2:]: name for name, option in SESSION_OPTIONS.items()}


def loadgen_spec(
    wanted: bool, min_duration_s: float | None, target_latency_ms: float | None
) -> LoadgenSpec | None:
    """Return the request of --loadgen and its own options."""
    asked = {"min_duration_s": min_duration_s, "target_latency_ms": target_latency_ms}
    changes = {name: value for name, value in asked.items() if value is not None}
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


def _listed(kind: Any) -> dict[str, Any]:
    """Return the values of a field's type by their texts; {} for a name or a number."""
    if kind is bool:
        return {"on": True, "off": False}
    return {text: text for text in get_args(kind)} if get_origin(kind) is Literal else {}


def _value(kind: Any, text: str) -> Any:
    """Return the value of a text for a field's type; None if it has none."""
    if listed := _listed(kind):
        return listed.get(text)
    if kind is str:
        return text or None
    return int(text) if text.isdecimal() else None


def _form(kind: Any) -> str:
    """Return the form of a field's type on the command line."""
    return "|".join(_listed(kind)) or ("NAME" if kind is str else "N")
