"""Compatibility of ONNX Runtime: the newest opset and IR version that each version reads.

The table is that of the project's own page, https://onnxruntime.ai/docs/reference/compatibility.html,
which ends at 1.20; the rest was measured, by opening a model of each opset and each IR version with
the published wheel (1.17.3 to 1.31.1; where both are known, they agree).
"""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from resdeploy.errors import ResdeployError
from resdeploy.machine.boards import Board, find_board
from resdeploy.schema.codec import load_json
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.machines import ProbeReport

__all__ = ["Readable", "for_target", "read_target", "readable_by"]


class Readable(NamedTuple):
    """Newest opset of the standard operators and newest IR version that a runtime reads."""

    opset: int
    ir_version: int


# From which version on, ascending.
_TABLE: tuple[tuple[tuple[int, int], Readable], ...] = (
    ((1, 7), Readable(13, 7)),
    ((1, 8), Readable(14, 7)),
    ((1, 9), Readable(15, 8)),
    ((1, 11), Readable(16, 8)),
    ((1, 12), Readable(17, 8)),
    ((1, 14), Readable(18, 8)),
    ((1, 15), Readable(19, 8)),
    ((1, 16), Readable(19, 9)),
    ((1, 17), Readable(20, 9)),
    ((1, 18), Readable(21, 10)),
    ((1, 21), Readable(22, 10)),
    ((1, 23), Readable(23, 11)),
    ((1, 24), Readable(25, 13)),
    ((1, 25), Readable(26, 13)),
)


def readable_by(runtime_version: str) -> Readable:
    """Return the limits of a version of ONNX Runtime; of a newer one than the table's, its last.

    A newer runtime reads all models of an older one, as the page promises.

    Raises:
        ResdeployError: the text is no version, or one before 1.7.
    """
    if not (match := re.match(r"(\d+)\.(\d+)", runtime_version)):
        raise ResdeployError(f"{runtime_version!r} is not a version of ONNX Runtime.")
    version = (int(match[1]), int(match[2]))
    found = [readable for since, readable in _TABLE if version >= since]
    if not found:
        raise ResdeployError(
            f"ONNX Runtime {runtime_version} is older than any that resdeploy exports for.",
            fix="install 1.18 or newer on the target",
        )
    return found[-1]


def for_target(spec: ExportSpec, *, opset: int | None, target: Path | None) -> ExportSpec:
    """Return `spec` with the requested opset, in a form that the target's runtime reads.

    `target` is the record of `probe` on the target, the name of a board (`boards`) or of an ONNX
    Runtime, as in onnxruntime-1.18; an `opset` of None leaves the default.

    Raises:
        ResdeployError: the record is missing or is none, there is no board of that name; or its
            runtime reads no such opset, or no such batch.
    """
    newest_known = _TABLE[-1][1].opset
    if opset is not None and opset > newest_known:
        raise ResdeployError(
            f"There is no opset {opset}: the newest that a runtime reads is {newest_known}.",
            where=f"--opset {opset}",
            fix=f"leave --opset away for {spec.opset}, which ONNX Runtime 1.14 or newer reads",
        )
    chosen = spec if opset is None else dataclasses.replace(spec, opset=opset)
    if target is None:
        return chosen
    runtime = re.fullmatch(r"onnxruntime-(\d+\.\d+.*)", str(target))
    if runtime is None and target.parent == Path() and not target.suffix and not target.exists():
        return _for_board(spec, opset, find_board(target.name))
    if runtime is not None:
        name, version = "ONNX Runtime", runtime[1]
    else:
        report = read_target(target)
        name, version = report.runtime, report.runtime_version
    reads = readable_by(version)
    if opset is not None and opset > reads.opset:
        raise ResdeployError(
            f"The target's {name} {version} reads opset {reads.opset} at the most, not {opset}.",
            where=str(target),
            fix="leave --opset away, or install a newer runtime on the target",
        )
    newest = min(chosen.opset, reads.opset)
    return dataclasses.replace(chosen, opset=newest, newest_ir_version=reads.ir_version)


def _for_board(spec: ExportSpec, opset: int | None, board: Board) -> ExportSpec:
    """Return `spec` in a form that the converter of a board reads."""
    if opset is not None and not board.oldest <= opset <= board.newest:
        raise ResdeployError(
            f"{board.title} reads opsets {board.oldest} to {board.newest}, not {opset}.",
            where=f"--for {board.name}",
            fix=f"leave --opset away: it is {board.writes} then",
        )
    if board.batch is not None and spec.batch not in ("dynamic", board.batch):
        raise ResdeployError(
            f"{board.title} takes {board.batch} sample at a time, not {spec.batch}.",
            where=f"--for {board.name}",
            fix="leave --batch away",
        )
    batch = spec.batch if board.batch is None else board.batch
    return dataclasses.replace(
        spec, opset=board.writes if opset is None else opset, batch=batch, board=board.name
    )


def read_target(path: Path) -> ProbeReport:
    """Return the record that `probe` wrote on the target.

    Raises:
        ResdeployError: it is missing or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResdeployError(
            "The record of the target cannot be read.",
            where=str(path),
            fix="write it on the target: resdeploy probe -o target.json; or from here: "
            "resdeploy probe --on USER@HOST -o target.json",
        ) from error
    return load_json(ProbeReport, text, where=str(path))
