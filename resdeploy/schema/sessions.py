"""Sessions on a provider, and where their nodes ran."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

from resdeploy.schema.codec import Judged, Record, record

GraphLevel = Literal["disabled", "basic", "extended", "all"]
PrecisionHint = Literal["default", "f32", "bf16"]
PrecisionName = Literal["float32", "tf32", "float16", "bfloat16", "int8", "unknown"]


class SessionOption(NamedTuple):
    """A field of `SessionSpec` on the command line and in tables, with its type and default.

    Attributes:
        help: the option's help; of `provider`, the names follow.
        shown: the text in tables of a value other than the default, "{}" for the value.
        changes_answers: True if it chooses an arithmetic, so that every command that opens sessions
            has it; the others, which change the speed alone, are options of `bench`.
        must_apply: True if it is refused on a provider whose own options it does not change.
    """

    flag: str
    help: str
    shown: str = "{}"
    changes_answers: bool = False
    must_apply: bool = False
    kind: Any = None
    default: Any = None


_PROVIDER = SessionOption("--provider", "Where to run", changes_answers=True)
_THREADS = SessionOption("--threads", "Threads of ONNX Runtime.  [default: its choice]")
_LEVEL = SessionOption(
    "--graph-level", "Graph optimisations of ONNX Runtime.", shown="graph level {}"
)
_TF32 = SessionOption(
    "--tf32",
    "On CUDA, let convolutions round their inputs to 10 bits.",
    shown="TF32",
    changes_answers=True,
)
_HINT = SessionOption(
    "--openvino-precision",
    "Arithmetic of openvino; its own choice is bfloat16 on CPUs that have it.",
    changes_answers=True,
)
# Awake they answer sooner, and burn power.
_SPINNING = SessionOption(
    "--spinning", "Let idle threads of the CPU wait awake.", shown="no spinning"
)
_NHWC = SessionOption(
    "--nhwc", "On CUDA, prefer kernels with the channels last.", shown="NHWC", must_apply=True
)
_CUDA_GRAPH = SessionOption(
    "--cuda-graph", "On CUDA, record a run and replay it.", shown="CUDA graph", must_apply=True
)


@record
class SessionSpec(Record):
    """A session to open: one provider, and nothing else may run a node.

    `provider` is a short name of `resdeploy.session.providers`; `num_threads` None leaves ONNX
    Runtime's own choice. The option of the command line stands beside each field's type.
    """

    provider: Annotated[str, _PROVIDER] = "cpu"
    num_threads: Annotated[int | None, _THREADS] = None
    graph_level: Annotated[GraphLevel, _LEVEL] = "all"
    use_tf32: Annotated[bool, _TF32] = False
    precision_hint: Annotated[PrecisionHint, _HINT] = "default"
    spinning: Annotated[bool, _SPINNING] = True
    prefer_nhwc: Annotated[bool, _NHWC] = False
    cuda_graph: Annotated[bool, _CUDA_GRAPH] = False


# By the name of the field, in its order.
SESSION_OPTIONS: Mapping[str, SessionOption] = {
    field.name: option._replace(kind=kind, default=field.default)
    for field in dataclasses.fields(SessionSpec)
    for kind, option in [get_args(field.type)]
}


@record
class SessionInfo(Record):
    """A started session: its runtime, and the number of nodes on each provider.

    `nodes_by_provider` is None where the runtime cannot tell (ONNX Runtime before 1.24).
    `disabled_optimizers` are graph optimisations of the runtime that are known to change this
    model's outputs, and so were switched off.
    """

    spec: SessionSpec
    runtime: str
    runtime_version: str
    active_providers: tuple[str, ...]
    nodes_by_provider: Mapping[str, int] | None
    disabled_optimizers: tuple[str, ...] = ()


@record
class Placement(Judged):
    """Placement of a model: the plan, and the kernels in a profile of one run.

    `planned` counts nodes by the provider they were assigned to, None where the runtime cannot tell
    (ONNX Runtime before 1.24); `executed` kernels of the run, fewer where nodes were fused, and one
    for a compiled subgraph; `num_copies` those that only moved a tensor between devices. `strays`
    are of other providers, "name (operator) on provider"; those that only describe or arrange
    values are no failure.
    """

    planned: Mapping[str, int] | None
    executed: Mapping[str, int]
    num_copies: int
    strays: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
