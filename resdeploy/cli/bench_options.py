"""How the options of `resdeploy bench` are read."""

import dataclasses
from typing import Any, get_args

import click

from resdeploy.schema.benchmarks import LoadgenSpec
from resdeploy.schema.sessions import GraphLevel, PrecisionHint, SessionSpec

__all__ = ["SESSION_OPTIONS", "loadgen_spec", "numbers", "with_options"]

SESSION_OPTIONS = (
    *("provider", "threads", "graph-level", "tf32", "openvino-precision", "spinning"),
    *("nhwc", "cuda-graph"),
)

_SWITCHES = {
    "tf32": "use_tf32",
    "spinning": "spinning",
    "nhwc": "prefer_nhwc",
    "cuda-graph": "cuda_graph",
}


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
        name, _, value = text.partition("=")
        if name == "provider" and value:
            changes["provider"] = value
        elif name == "threads" and value.isdecimal():
            changes["num_threads"] = int(value)
        elif name == "graph-level" and value in get_args(GraphLevel):
            changes["graph_level"] = value
        elif name in _SWITCHES and value in ("on", "off"):
            changes[_SWITCHES[name]] = value == "on"
        elif name == "openvino-precision" and value in get_args(PrecisionHint):
            changes["precision_hint"] = value
        else:
            raise click.BadParameter(
                f"{text!r} is not one of provider=NAME, threads=N, "
                f"graph-level={'|'.join(get_args(GraphLevel))}, tf32=on|off, "
                f"openvino-precision={'|'.join(get_args(PrecisionHint))}, spinning=on|off, "
                "nhwc=on|off, cuda-graph=on|off",
                param_hint="--against-option",
            )
    return dataclasses.replace(session, **changes)
