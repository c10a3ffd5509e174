"""Checkpoints: weights in files.

Ours are safetensors files whose metadata entry `resdeploy` holds a `CheckpointInfo` as JSON: data
alone, complete in one file. Files from elsewhere are read as data too, or not at all.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_write
from resdeploy.networks import ARCHITECTURES, build_network
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec

__all__ = [
    "CHECKPOINT_NAME",
    "is_own_checkpoint",
    "load_checkpoint",
    "load_foreign_state_dict",
    "load_into",
    "read_tensors",
    "save_checkpoint",
    "suggest_architectures",
    "write_tensors",
]

CHECKPOINT_NAME = "checkpoint.safetensors"

_METADATA_KEY = "resdeploy"
_WEIGHT_ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_EMA_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
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
            fix="say which network the weights belong to, with --arch",
        )
    return tensors, load_json(CheckpointInfo, metadata[_METADATA_KEY], where=str(path))


def is_own_checkpoint(path: str | Path) -> bool:
    """Test for a resdeploy checkpoint, which names its network.

    Raises:
        ResdeployError: the file is missing, or is a damaged safetensors file.
    """
    path = Path(path)
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


def load_foreign_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the weights, on the CPU, of a file that another program wrote.

    A `.safetensors` file, or one of `torch.save` with a state dict, alone or as an entry such as
    `state_dict` or `model` of a training checkpoint. Prefixes of wrappers before every name
    (`module.`, `_orig_mod.`, `model.`) are taken off. No code of the file runs.

    Raises:
        ResdeployError: the file is missing or damaged; holds a pickled object rather than weights;
            or holds two sets of weights, raw and averaged, without a sign which is meant.
    """
    path = Path(path)
    _check_is_file(path)
    content = read_tensors(path)[0] if path.suffix == ".safetensors" else _load_pickled(path)
    state_dict = _unwrap(content, str(path))
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ResdeployError(
                f"The entry {name!r} is no weight but {type(value).__name__}.",
                where=str(path),
                fix="save model.state_dict()",
            )
    return _strip_prefixes(state_dict)


def load_into(module: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Put the weights into the network: every one of them, and nothing else.

    A classifier called `fc` in one and `linear` in the other is matched. BatchNorm's counter
    `num_batches_tracked`, which old files lack and inference never reads, may be missing.

    The network is unchanged if this raises. It may be on the meta device, which spares the
    initialisation that the weights replace; it is then on the CPU. `source` names the weights in
    an error.

    Raises:
        ResdeployError: a weight is missing, is not in the network, or has another shape.
    """
    wanted = module.state_dict()
    given = _rename_classifier(state_dict, wanted)
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, torch.zeros(tensor.shape, dtype=tensor.dtype))
    wrong = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} is {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in given and given[name].shape != tensor.shape
        ],
    }
    if any(wrong.values()):
        lines = [
            f"{len(names)} {what}: {', '.join(names[:_NUM_LISTED])}"
            + (", …" if len(names) > _NUM_LISTED else "")
            for what, names in wrong.items()
            if names
        ]
        raise ResdeployError(
            f"The weights do not fit the network. {'; '.join(lines)}.",
            where=source,
            fix=f"these weights fit --arch {' or '.join(fitting[:_NUM_LISTED])}"
            if (fitting := suggest_architectures(state_dict))
            else "give the --arch and the --arch-option the weights were trained with",
        )
    # A module on the meta device has no memory to copy into: it takes the tensors themselves.
    in_its_types = {name: tensor.to(wanted[name].dtype) for name, tensor in given.items()}
    module.load_state_dict(in_its_types, assign=any(t.is_meta for t in wanted.values()))


def suggest_architectures(state_dict: Mapping[str, Tensor]) -> list[str]:
    """Return the architectures that these weights fit exactly, as --arch takes them.

    Options are the defaults but for `in_channels`, which the first convolution tells; it is named
    where it is not the default. The networks are built without memory for weights, so trying all of
    them is cheap.
    """
    classifiers = [t.shape[0] for n, t in state_dict.items() if n.endswith(".weight")]
    if not classifiers:
        return []
    first = next((t for t in state_dict.values() if t.ndim >= 3), None)
    found = []
    for arch, architecture in ARCHITECTURES.items():
        option = architecture.options.get("in_channels")
        options: dict[str, int] = {}
        if first is not None and option is not None and first.shape[1] != option.default:
            options["in_channels"] = first.shape[1]
        model = ModelSpec(arch=arch, num_classes=classifiers[-1], options=options)
        with torch.device("meta"):
            wanted = build_network(model).state_dict()
        given = _rename_classifier(state_dict, wanted)
        if _essential_shapes(given) == _essential_shapes(wanted):
            found.append(" --arch-option ".join([arch, *(f"{n}={v}" for n, v in options.items())]))
    return found


def _essential_shapes(state_dict: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in state_dict.items() if not n.endswith("num_batches_tracked")}


def _rename_classifier(
    state_dict: Mapping[str, Tensor], wanted: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return a copy with the network's names for the last layer and for projections.

    The one is `fc` or `linear`, the others are `downsample` or `shortcut`.
    """
    given = dict(state_dict)
    for theirs, ours in ((".shortcut.", ".downsample."), (".downsample.", ".shortcut.")):
        if not any(theirs in name for name in wanted) and any(ours in name for name in wanted):
            given = {name.replace(theirs, ours): tensor for name, tensor in given.items()}
    for theirs, ours in (("fc", "linear"), ("linear", "fc")):
        for leaf in ("weight", "bias"):
            old, new = f"{theirs}.{leaf}", f"{ours}.{leaf}"
            if old in given and old not in wanted and new in wanted and new not in given:
                given[new] = given.pop(old)
    return given


# --- files from elsewhere ------------------------------------------------------------------------


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise ResdeployError("There is no such file.", where=str(path))


def _load_pickled(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        # torch.load raises the errors of its reader: RuntimeError, EOFError, KeyError, …
        # A GLOBAL is the pickle's word for a class or function by name.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            what = (
                "The file holds objects that only its own program can rebuild, not weights alone."
            )
            fix = "where its source is trusted, load it and save model.state_dict() instead"
        elif "TorchScript" in str(error):
            what = "This is a TorchScript program, not weights."
            fix = "load it with torch.jit.load and save its state_dict()"
        else:
            what = f"The file is damaged or is no torch checkpoint: {_cause(error)}."
            fix = "copy or download it again"
        raise ResdeployError(what, where=str(path), fix=fix) from error


def _cause(error: Exception) -> str:
    """Return torch's message, without its advice to load the file as a program."""
    message = str(error)
    message = message.partition("WeightsUnpickler error:")[2] or message
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _unwrap(content: Any, where: str) -> Mapping[str, Any]:
    """Return the one mapping of weights in a checkpoint, from its entry if it lies in one."""
    if isinstance(content, Mapping):
        known = (*_WEIGHT_ENTRIES, *_EMA_ENTRIES)
        entries = [name for name in known if isinstance(content.get(name), Mapping)]
        if len(entries) > 1:
            raise ResdeployError(
                f"The file holds {len(entries)} sets of weights: {', '.join(entries)}.",
                where=where,
                fix="save the one you mean on its own: "
                f"torch.save(checkpoint[{entries[0]!r}], 'weights.pt')",
            )
        if entries:
            return _unwrap(content[entries[0]], where)
        if any(isinstance(value, Tensor) for value in content.values()):
            return content
        kind = f"a dictionary of {', '.join(map(repr, list(content)[:8])) or 'nothing'}"
    else:
        kind = f"one {type(content).__name__}"
    raise ResdeployError(
        f"There are no weights in this file: it holds {kind}.",
        where=where,
        fix="save model.state_dict()",
    )


def _strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stripped = dict(state_dict)
    # torch.optim.swa_utils.AveragedModel adds a counter of its updates.
    if "n_averaged" in stripped and any(name.startswith("module.") for name in stripped):
        del stripped["n_averaged"]
    while shared := [p for p in _PREFIXES if stripped and all(n.startswith(p) for n in stripped)]:
        stripped = {name.removeprefix(shared[0]): tensor for name, tensor in stripped.items()}
    return stripped
