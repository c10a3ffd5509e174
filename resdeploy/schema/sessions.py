"""Sessions on a provider, and where their nodes ran."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from resdeploy.schema.codec import record

__all__ = [
    "SESSION_OPTIONS",
    "GraphLevel",
    "Placement",
    "PrecisionHint",
    "PrecisionName",
    "SessionInfo",
    "SessionOption",
    "SessionSpec",
]

GraphLevel = Literal["disabled", "basic", "extended", "all"]
PrecisionHint = Literal["default", "f32", "bf16"]
PrecisionName = Literal["float32", "tf32", "float16", "bfloat16", "int8", "unknown"]


@record
class SessionOption:
    """A field of `SessionSpec` on the command line and in tables.

    Attributes:
        flag: the option, such as "--tf32".
        help: the option's help; of `provider`, the names follow.
        shown: a value other than the default in a table, "{}" in the place of the value.
        changes_answers: whether it chooses an arithmetic, so that every command that opens sessions
            has it; the others, which change the speed alone, are options of `bench`.
        must_apply: whether it is refused on a provider whose own options it does not change.
        kind: the field's type.
        default: the field's default.
    """

    flag: str
    help: str
    shown: str = "{}"
    changes_answers: bool = False
    must_apply: bool = False
    kind: Any = None
    default: Any = None


@record
class SessionSpec:
    """A session to open: one provider, and nothing else may run a node.

    `provider` is a short name of `resdeploy.target.providers`; `num_threads` None leaves ONNX
    Runtime's own choice. Each field is an option of the command line and a choice of `tune` by
    what stands here and in the table of providers.
    """

    provider: Annotated[
        str, SessionOption(flag="--provider", help="Where to run", changes_answers=True)
    ] = "cpu"
    num_threads: Annotated[
        int | None,
        SessionOption(flag="--threads", help="Threads of ONNX Runtime.  [default: its choice]"),
    ] = None
    graph_level: Annotated[
        GraphLevel,
        SessionOption(
            flag="--graph-level",
            help="Graph optimisations of ONNX Runtime.",
            shown="graph level {}",
        ),
    ] = "all"
    use_tf32: Annotated[
        bool,
        SessionOption(
            flag="--tf32",
            help="On CUDA, let convolutions round their inputs to 10 bits.",
            shown="TF32",
            changes_answers=True,
        ),
    ] = False
    precision_hint: Annotated[
        PrecisionHint,
        SessionOption(
            flag="--openvino-precision",
            help="Arithmetic of openvino; its own choice is bfloat16 on CPUs that have it.",
            changes_answers=True,
        ),
    ] = "default"
    # Answers sooner, and burns power.
    spinning: Annotated[
        bool,
        SessionOption(
            flag="--spinning", help="Let idle threads of the CPU wait awake.", shown="no spinning"
        ),
    ] = True
    prefer_nhwc: Annotated[
        bool,
        SessionOption(
            flag="--nhwc",
            help="On CUDA, prefer kernels with the channels last.",
            shown="NHWC",
            must_apply=True,
        ),
    ] = False
    cuda_graph: Annotated[
        bool,
        SessionOption(
            flag="--cuda-graph",
            help="On CUDA, record a run and replay it.",
            shown="CUDA graph",
            must_apply=True,
        ),
    ] = False


def _session_options() -> dict[str, SessionOption]:
    options = {}
    for field in dataclasses.fields(SessionSpec):
        kind, option = get_args(field.type)
        options[field.name] = dataclasses.replace(option, kind=kind, default=field.default)
    return options


# By the name of the field, in its order.
SESSION_OPTIONS: Mapping[str, SessionOption] = MappingProxyType(_session_options())


@record
class SessionInfo:
    """A session that started: what it runs on, and how many nodes each provider was given.

    `nodes_by_provider` is None where the runtime cannot tell (ONNX Runtime before 1.24).
    `disabled_optimizers` are graph optimisations of the runtime that are known to change what
    this model computes, and so were switched off.
    """

    spec: SessionSpec
    runtime: str
    runtime_version: str
    active_providers: tuple[str, ...]
    nodes_by_provider: Mapping[str, int] | None
    disabled_optimizers: tuple[str, ...] = ()


@record
class Placement:
    """Where a model ran: what was planned, and what a profile of one run saw.

    Attributes:
        planned: nodes of the graph by the provider they were assigned to; None where the runtime
            cannot tell (ONNX Runtime before 1.24).
        executed: kernels of the run by the provider whose kernel it was. They are fewer than the
            nodes where kernels do the work of several; a compiled subgraph is one.
        num_copies: kernels that did nothing but move a tensor between devices.
        strays: nodes and kernels of other providers, "name (operator) on provider"; those that only
            describe or arrange values are no failure.
        reasons: why the placement is a failure; empty when it passed.
    """

    planned: Mapping[str, int] | None
    executed: Mapping[str, int]
    num_copies: int
    strays: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything that computes was on the provider asked for."""
        return not self.reasons
