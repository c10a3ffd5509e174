"""Checkpoints: weights in files.

Ours are safetensors files whose metadata entry `resdeploy` holds a `CheckpointInfo` as JSON: data
alone, complete in one file. Files from elsewhere are read in `resdeploy.weights`.
"""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_write
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.files import CHECKPOINT_NAME
from resdeploy.schema.recipes import CheckpointInfo

__all__ = [
    "CHECKPOINT_NAME",
    "differences",
    "is_own_checkpoint",
    "load_checkpoint",
    "load_into",
    "read_tensors",
    "save_checkpoint",
    "write_tensors",
]


_METADATA_KEY = "resdeploy"
_COUNTER = "num_batches_tracked"
_NUM_LISTED = 4


def save_checkpoint(
    path: str | Path, source: nn.Module | Mapping[str, Tensor], info: CheckpointInfo
) -> None:
    """Write the weights and the record to one safetensors file, all of it or none.

    Raises:
        ResdeployError: the file cannot be written.
    """
    state_dict = source.state_dict() if isinstance(source, nn.Module) else source
    write_tensors(path, state_dict, {_METADATA_KEY: dump_json(info, indent=None)})


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """Return the weights, on the CPU, and the record of a resdeploy checkpoint or run directory.

    Raises:
        ResdeployError: the file is missing, damaged, or not one of resdeploy's.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CHECKPOINT_NAME
    tensors, metadata = read_tensors(path)
    if _METADATA_KEY not in metadata:
        raise ResdeployError(
            "This safetensors file is not a resdeploy checkpoint: it has no record.",
            where=str(path),
            fix="give a file that resdeploy wrote",
        )
    return tensors, load_json(CheckpointInfo, metadata[_METADATA_KEY], where=str(path))


def is_own_checkpoint(path: str | Path) -> bool:
    """Test for a resdeploy checkpoint, which names its network, or the folder of a run with one.

    Raises:
        ResdeployError: the file is missing, or is a damaged safetensors file.
    """
    path = Path(path)
    if path.is_dir():
        # An interrupted run has none yet; `load_checkpoint` then says so.
        return (path / CHECKPOINT_NAME).is_file() or (path / "recipe.json").is_file()
    _check_is_file(path)
    return path.suffix == ".safetensors" and _METADATA_KEY in read_tensors(path)[1]


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, whole or not at all, in place of one that is there.

    Raises:
        ResdeployError: the file cannot be written; then `path` is as it was.
    """
    # Copies, as safetensors refuses tensors that share memory (tied weights).
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    with atomic_write(Path(path), force=True) as temporary:
        # Not save_file: it makes files that only their owner may read.
        temporary.write_bytes(save(copies, metadata=dict(metadata)))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, on the CPU, and the metadata of any safetensors file.

    Raises:
        ResdeployError: the file is missing, cut short, or not a safetensors file.
    """
    _check_is_file(Path(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ResdeployError(
            f"This is not a whole safetensors file: {error}.",
            where=str(path),
            fix="copy or train it again",
        ) from error


def load_into(module: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Put the weights into the network: every one of them, and nothing else.

    BatchNorm's counter `num_batches_tracked`, which old files lack and inference never reads, may
    be missing.

    The network is unchanged if this raises. It may be on the meta device, which spares the
    initialisation that the weights replace; it is then on the CPU. `source` names the weights in
    an error.

    Raises:
        ResdeployError: a weight is missing, is not in the network, or has another shape.
    """
    wanted = module.state_dict()
    if lines := differences(wanted, state_dict):
        raise ResdeployError(
            f"The weights do not fit the network. {'; '.join(lines)}.",
            where=source,
            fix="give weights of this very network",
        )
    given = dict(state_dict)
    for name, tensor in wanted.items():
        if name.endswith(_COUNTER):
            given.setdefault(name, torch.zeros(tensor.shape, dtype=tensor.dtype))
    # A module on the meta device has no memory to copy into: it takes the tensors themselves.
    in_its_types = {name: tensor.to(wanted[name].dtype) for name, tensor in given.items()}
    module.load_state_dict(in_its_types, assign=any(t.is_meta for t in wanted.values()))


def differences(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return a line for what is missing, for what is too much, and for what has another shape."""
    wrong = {
        "missing": [n for n in wanted if n not in given and not n.endswith(_COUNTER)],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} is {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in given and given[name].shape != tensor.shape
        ],
    }
    return [
        f"{len(names)} {what}: {', '.join(names[:_NUM_LISTED])}"
        + (", …" if len(names) > _NUM_LISTED else "")
        for what, names in wrong.items()
        if names
    ]


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise ResdeployError("There is no such file.", where=str(path))
