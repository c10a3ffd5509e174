"""Boards and converters by name: what form of ONNX each reads, and where that is written.

One row each, with its sources; a range that no source names is the narrower reading of them, and a
remark at the row says so. `writes` is the opset that every release in the row reads, so that a file
need not know which one is installed. Other runtimes than these are described by the record of
`resdeploy probe`, or are an ONNX Runtime by its version.
"""

from dataclasses import dataclass

from resdeploy.errors import ResdeployError

__all__ = ["BOARDS", "Board", "find_board"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A board's converter.

    Attributes:
        name: as in `--for`.
        title: the converter and its releases.
        oldest, newest: the opsets that it reads.
        writes: the opset to write.
        batch: the one number of samples that it takes; None for any.
        lacks: operators of ONNX that it does not take.
        sources: where that is written.
    """

    name: str
    title: str
    oldest: int
    newest: int
    writes: int
    batch: int | None = None
    lacks: frozenset[str] = frozenset()
    sources: tuple[str, ...]


_RKNN = "https://github.com/rockchip-linux/rknn-toolkit2"
_ONNX_TENSORRT = "https://github.com/onnx/onnx-tensorrt/blob/{}/docs/operators.md"
_QUALCOMM = "https://docs.qualcomm.com/doc/80-63442-{}"

_NO_SEQUENCES = frozenset(
    {
        *("ConcatFromSequence", "QLinearConv", "QLinearMatMul", "SequenceAt", "SequenceConstruct"),
        *("SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
    }
)
_TENSORRT_8 = {
    "oldest": 7,
    "newest": 17,
    "writes": 17,
    "lacks": _NO_SEQUENCES | {"LayerNormalization", "SplitToSequence"},
}

_ROWS = (
    Board(
        name="rknn",
        title="RKNN-Toolkit2, from 1.4 on (before 1.6 it reads opset 12 alone)",
        oldest=12,
        newest=19,
        writes=12,
        batch=1,  # of Softmax and Slice, among others
        lacks=_NO_SEQUENCES
        | {
            *("Abs", "And", "Ceil", "Celu", "Cos", "CumSum", "Einsum", "Erf", "Expand", "Floor"),
            *("Log", "LpPool", "Mean", "Neg", "Not", "Or", "Range", "Reciprocal", "ReduceL1"),
            *("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "Round", "Selu"),
            *("Sign", "Sin"),
        },
        sources=(
            f"{_RKNN}/releases",
            f"{_RKNN}/blob/master/doc/RKNNToolKit2_OP_Support-1.4.0.md",
        ),
    ),
    Board(
        name="tensorrt8",
        title="TensorRT 8.5 and 8.6",
        sources=(_ONNX_TENSORRT.format("release/8.5-GA"),),
        **_TENSORRT_8,  # type: ignore[arg-type]
    ),
    Board(
        name="tensorrt10",
        title="TensorRT 10",
        oldest=9,
        newest=24,
        writes=17,
        lacks=_NO_SEQUENCES,
        sources=(_ONNX_TENSORRT.format("main"),),
    ),
    Board(
        name="jetpack5",
        title="Jetson with JetPack 5.1, which has TensorRT 8.5",
        sources=(
            "https://developer.nvidia.com/embedded/jetpack-sdk-51",
            _ONNX_TENSORRT.format("release/8.5-GA"),
        ),
        **_TENSORRT_8,  # type: ignore[arg-type]
    ),
    # No page has the range of 10.3: it is what TensorRT 10 and its predecessor both read.
    Board(
        name="jetpack6",
        title="Jetson with JetPack 6.1, which has TensorRT 10.3",
        oldest=9,
        newest=17,
        writes=17,
        lacks=_NO_SEQUENCES,
        sources=(
            "https://pytorch.org/TensorRT/getting_started/jetpack.html",
            _ONNX_TENSORRT.format("main"),
        ),
    ),
    # Neither page names a range: it is that of the versions of Clip which both list.
    Board(
        name="snpe",
        title="Qualcomm Neural Processing SDK (snpe-onnx-to-dlc)",
        oldest=9,
        newest=12,
        writes=12,
        sources=(f"{_QUALCOMM.format(2)}/topic/supported_onnx_ops.html",),
    ),
    Board(
        name="qnn",
        title="Qualcomm AI Engine Direct (QNN)",
        oldest=9,
        newest=12,
        writes=12,
        sources=(
            f"{_QUALCOMM.format(10)}/topic/general_supported_onnx_ops.html",
            f"{_QUALCOMM.format(10)}/topic/SupportedOps.html",
        ),
    ),
)
BOARDS = {board.name: board for board in _ROWS}


def find_board(name: str) -> Board:
    """Return the row of a board.

    Raises:
        ResdeployError: there is none of that name.
    """
    if name not in BOARDS:
        raise ResdeployError(
            f"There is no board called {name!r}, and no such record of a target.",
            fix=f"name one of {', '.join(BOARDS)}, an ONNX Runtime as in onnxruntime-1.18, or the "
            "file that resdeploy probe -o wrote on the target",
        )
    return BOARDS[name]
