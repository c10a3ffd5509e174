"""Sessions on a provider, and where their nodes ran."""

from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record

__all__ = [
    "GraphLevel",
    "Placement",
    "PrecisionHint",
    "PrecisionName",
    "SessionInfo",
    "SessionSpec",
]

GraphLevel = Literal["disabled", "basic", "extended", "all"]
PrecisionHint = Literal["default", "f32", "bf16"]
PrecisionName = Literal["float32", "tf32", "float16", "bfloat16", "int8", "unknown"]


@record
class SessionSpec(Record):
    """A session to open: one provider, and nothing else may run a node.

    `provider` is a short name of `resdeploy.target.providers`; `num_threads` None leaves ONNX
    Runtime's own choice; `use_tf32` concerns CUDA only, and `precision_hint`, the arithmetic that
    may stand in for float32, OpenVINO only. `spinning` lets idle threads of the CPU wait awake,
    which answers sooner and burns power. On CUDA `prefer_nhwc` asks for kernels with the channels
    last, and `cuda_graph` records the launches of a run and replays them.
    """

    provider: str = "cpu"
    num_threads: int | None = None
    graph_level: GraphLevel = "all"
    use_tf32: bool = False
    precision_hint: PrecisionHint = "default"
    spinning: bool = True
    prefer_nhwc: bool = False
    cuda_graph: bool = False


@record
class SessionInfo(Record):
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
class Placement(Record):
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
