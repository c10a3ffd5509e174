"""The network of a file of weights from elsewhere, with a note of all that was found on the way."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from resdeploy.errors import ResdeployError
from resdeploy.networks import ARCHITECTURES, build_network, parse_options
from resdeploy.schema.recipes import ModelSpec
from resdeploy.training.checkpoint import differences
from resdeploy.weights.beside import stated_architectures, transformers_config
from resdeploy.weights.foreign_file import ForeignFile
from resdeploy.weights.network_search import (
    Fit,
    find_fits,
    fit_names,
    nearest_differences,
)

__all__ = ["ForeignNetwork", "find_network", "weights_for"]

_EMA = re.compile(r"(?i)(^|[._])(ema|swa|averaged|avg|shadow)([._]|$)")
# The entries of averaged weights that timm loads before any other (timm/models/_helpers.py,
# load_state_dict), each with that of the weights which they are the average of.
_PREFERRED = {"state_dict_ema": "state_dict", "model_ema": "model"}
_NUM_LISTED = 4
# Variants whose weights have the names and shapes of the plain network: blurred pooling without
# weights, strides in the 1x1 convolution, other activations.
_LOOK_ALIKE = re.compile(r"(?i)resne\w*?(blur|aa\d|caffe|msra|frelu|gelu|silu|mish)|caffe")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignNetwork:
    """A network, its weights by its own names, and a line for each thing that was found or left."""

    model: ModelSpec
    state_dict: Mapping[str, Tensor]
    notes: tuple[str, ...]


def find_network(
    file: ForeignFile,
    *,
    arch: str | None = None,
    options: Mapping[str, str] | None = None,
    weights: str | None = None,
) -> ForeignNetwork:
    """Return the one network whose weights a file holds.

    Args:
        file: the weights.
        arch: the architecture; None to find it.
        options: its options, as text.
        weights: which set is meant where there are several: "raw", "ema", or its prefix; None for
            the averaged one of timm's and torchvision's training scripts.

    Raises:
        ResdeployError: no network fits, or several do, or there are several sets of weights; the
            message says what to give.
    """
    parsed = {} if arch is None else parse_options(arch, options or {})
    if arch is not None:
        # For its checks, before anything is compared.
        with torch.device("meta"):
            build_network(ModelSpec(arch=arch, num_classes=1, options=parsed))
    fits = find_fits(file.tensors, arch=arch, options=parsed)
    if not fits:
        raise _no_fit(file, arch, parsed)
    prefixes = {fit.view.root: _Set(root=fit.view.root, names=fit.names) for fit in fits}
    chosen = _chosen([*prefixes.values()], file, weights)
    fit = _the_one([fit for fit in fits if fit.view.root == chosen.root], file)
    if arch is None:
        _check_words(fit, file)
    state_dict = {name: file.tensors[full] for name, full in fit.names.items()}
    notes = _notes(fit, file, found=arch is None)
    weights_notes = _notes_of_weights(replace(chosen, names=fit.names), file)
    return ForeignNetwork(model=fit.model, state_dict=state_dict, notes=(*notes, *weights_notes))


def weights_for(
    module: nn.Module, file: ForeignFile, *, weights: str | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights of a module of any architecture in a file, and what was left out.

    Raises:
        ResdeployError: they are not there, in these shapes, or more than once.
    """
    wanted = module.state_dict()
    sets = [_Set(root=_root(names), names=names) for names in fit_names(wanted, file.tensors)]
    if not sets:
        lines = differences(wanted, _under_likeliest_root(wanted, file.tensors))
        raise ResdeployError(
            f"The weights do not fit the module. {'; '.join(lines)}.",
            where=str(file.path),
            fix="give the weights of this very module",
        )
    chosen = _chosen(sets, file, weights)
    found = {name: file.tensors[full] for name, full in chosen.names.items()}
    return found, _notes_of_weights(chosen, file)


# --- which set of weights -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """A set of weights under one root, "" or with a dot at its end.

    Attributes:
        preferred: True for averaged weights that were taken before raw ones, unasked.
    """

    root: str
    names: Mapping[str, str]
    preferred: bool = False

    @property
    def is_averaged(self) -> bool:
        return _EMA.search(self.root) is not None

    @property
    def entry(self) -> str:
        """The entry of the file's root that it lies in."""
        return self.root.partition(".")[0]

    @property
    def title(self) -> str:
        return self.root.removesuffix(".") or "the file's root"


def _root(names: Mapping[str, str]) -> str:
    name, full = next(iter(names.items()))
    return full.removesuffix(name)


def _chosen(sets: Sequence[_Set], file: ForeignFile, weights: str | None) -> _Set:
    """Return the set that is meant by `weights`; of equal ones the first, raw before averaged.

    Without `weights`, of two sets of which one is the other's average that one.
    """
    sets = sorted(sets, key=lambda one: (one.is_averaged, one.root))
    if weights in ("raw", "ema"):
        meant = [one for one in sets if one.is_averaged == (weights == "ema")]
    elif weights is not None:
        asked = weights.removesuffix(".")
        meant = [one for one in sets if f".{one.root}".endswith(f".{asked}.")] or [
            one for one in sets if f".{one.root}".startswith(f".{asked}.")
        ]
    else:
        meant = [*sets]
    titles = ", ".join(one.title for one in sets)
    if not meant:
        raise ResdeployError(
            f"There are no weights {weights!r} in this file; it has {titles}.",
            where=str(file.path),
            fix="leave --weights out" if len(sets) == 1 else "name one of these with --weights",
        )
    if len(meant) > 1 and not _are_equal(meant, file.tensors):
        raw, *_, last = meant
        is_pair = len(meant) == 2 and _PREFERRED.get(last.entry) == raw.entry
        if weights is None and is_pair:
            return replace(last, preferred=True)
        kinds = [one.is_averaged for one in meant]
        ways = [
            "--weights ema"
            if one.is_averaged and kinds.count(True) == 1
            else "--weights raw"
            if not one.is_averaged and kinds.count(False) == 1
            else f"--weights {one.title}"
            for one in meant
        ]
        raise ResdeployError(
            f"The file holds {len(meant)} sets of weights: "
            f"{', '.join(one.title for one in meant)}.",
            where=str(file.path),
            fix=f"say which one is meant: {' or '.join(ways)}",
        )
    return meant[0]


def _are_equal(sets: Iterable[_Set], tensors: Mapping[str, Tensor]) -> bool:
    first, *others = ({n: tensors[full] for n, full in one.names.items()} for one in sets)
    return all(
        set(first) == set(other) and all(torch.equal(first[n], other[n]) for n in first)
        for other in others
    )


# --- which network --------------------------------------------------------------------------------


def _the_one(fits: Sequence[Fit], file: ForeignFile) -> Fit:
    """Return the one fit, by what the file itself says where shapes do not tell."""
    if len(fits) == 1:
        return fits[0]
    said = {_plain_name(word) for word, _ in stated_architectures(file)}
    meant = [fit for fit in fits if _plain_name(fit.model.arch) in said]
    if len(meant) == 1:
        return meant[0]
    ways = dict.fromkeys(_option_text(fit.model) for fit in fits)
    raise ResdeployError(
        f"The weights fit {len(ways)} networks, which their names and shapes do not tell apart: "
        f"{', '.join(fit.model.arch for fit in fits)}.",
        where=str(file.path),
        fix=f"say which it is: {' or '.join(ways)}",
    )


def _check_words(fit: Fit, file: ForeignFile) -> None:
    """Refuse a network that looks as ours does, and computes something else.

    Raises:
        ResdeployError: the file, its program or its config.json says so.
    """
    fix = f"where it computes what {fit.model.arch} does, give --arch {fit.model.arch}"
    for word, place in stated_architectures(file):
        if _LOOK_ALIKE.search(word) and word not in ARCHITECTURES:
            raise ResdeployError(
                f"The file says that it is a {word}, whose weights look like those of a "
                f"{fit.model.arch}, and which is another network.",
                where=f"{file.path}: {place}",
                fix=fix,
            )
    scheme = fit.view.scheme
    is_unsaid = scheme is not None and scheme.stride_unsaid and "layer1.0.conv3.weight" in fit.names
    if scheme is not None and is_unsaid and not _says_stride_in_3x3(file.folder):
        raise ResdeployError(
            f"A bottleneck of {scheme.program} has its stride in the 1x1 convolution, unless "
            f"its config says STRIDE_IN_1X1: false; {fit.model.arch} has it in the 3x3. The "
            "weights do not tell.",
            where=str(file.path),
            fix=f"where the config says false, give --arch {fit.model.arch}; otherwise "
            "--model package.module:function",
        )
    config = transformers_config(file)
    for key, plain in (
        ("hidden_act", "relu"),
        ("downsample_in_bottleneck", False),
        ("downsample_in_first_stage", False),
    ):
        if config.get(key, plain) != plain:
            raise ResdeployError(
                f"The network has {key} {config[key]!r}; {fit.model.arch} has {plain!r}.",
                where=str(file.folder / "config.json"),
                fix="give a module of your own, with --model package.module:function",
            )


def _says_stride_in_3x3(folder: Path) -> bool:
    for name in ("config.yaml", "config.yml"):
        try:
            text = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if re.search(r"(?im)^\s*STRIDE_IN_1X1:\s*false\s*$", text):
            return True
    return False


def _plain_name(word: str) -> str:
    """Return "resnet50" for "timm/resnet50.a1_in1k" and "ResNet-50"."""
    name = word.lower().rpartition("/")[2].partition(".")[0]
    name = re.sub(r"^(tv|gluon|ssl|swsl)_|_v1b$", "", name)
    return re.sub(r"(?<=resnet)[-_](?=\d)", "", name)


def _no_fit(file: ForeignFile, arch: str | None, options: Mapping[str, object]) -> ResdeployError:
    typed = {name: value for name, value in options.items() if isinstance(value, str | int | float)}
    nearest = nearest_differences(file.tensors, arch, typed)
    fitting = [] if arch is None else find_fits(file.tensors)
    ways = list(dict.fromkeys(_option_text(fit.model) for fit in fitting))
    fix = "give a module of your own, with --model package.module:function --input C,H,W"
    if file.is_program:
        fix = f"run the program itself: --model {file.path} --input C,H,W"
    if ways:
        fix = f"these weights fit {' or '.join(ways[:_NUM_LISTED])}"
    elif arch is not None:
        fix = f"give the --arch and the --arch-option they were trained with; or {fix}"
    if nearest is None:
        names = [*file.tensors]
        return ResdeployError(
            f"No network of resdeploy's has such weights: {', '.join(names[:_NUM_LISTED])}"
            f"{', …' if len(names) > _NUM_LISTED else ''}.",
            where=str(file.path),
            fix=fix,
        )
    name, given = nearest
    with torch.device("meta"):
        model = ModelSpec(arch=name, num_classes=_num_classes(given), options=typed)
        wanted = build_network(model).state_dict()
    lines = "; ".join(differences(wanted, given))
    what = (
        f"No network of resdeploy's fits the weights. The nearest is {name}: {lines}."
        if arch is None
        else f"The weights do not fit the network. {lines}."
    )
    return ResdeployError(what, where=str(file.path), fix=fix)


def _num_classes(given: Mapping[str, Tensor]) -> int:
    flat = [t for name, t in given.items() if t.ndim == 2 and name.endswith(".weight")]
    return int(flat[-1].shape[0]) if flat and flat[-1].shape[0] else 1


def _option_text(model: ModelSpec) -> str:
    options = "".join(f" --arch-option {name}={value}" for name, value in model.options.items())
    return f"--arch {model.arch}{options}"


def _under_likeliest_root(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors under the prefix that most of the wanted names have in the file."""
    roots: dict[str, int] = {"": 0}
    for full in tensors:
        parts = full.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                root = ".".join((*parts[:i], ""))
                roots[root] = roots.get(root, 0) + 1
    root = max(roots, key=lambda one: roots[one])
    return {n.removeprefix(root): t for n, t in tensors.items() if n.startswith(root)}


# --- notes ----------------------------------------------------------------------------------------


def _notes(fit: Fit, file: ForeignFile, *, found: bool) -> tuple[str, ...]:
    options = "".join(f", {name}={value}" for name, value in fit.model.options.items())
    notes = []
    if found:
        count = fit.model.num_classes
        classes = f"{count} classes" if count else "without a head, its outputs are features"
        notes.append(
            f"network: {fit.model.arch}{options}, {classes}, by the weights' names and shapes"
        )
    if fit.view.scheme is not None:
        notes.append(f"names: those of {fit.view.scheme.program}")
    if fit.classifier is not None:
        notes.append(f"classifier: {fit.classifier}")
    if file.is_program:
        notes.append("program: TorchScript's own is not used, its weights alone")
    return tuple(notes)


def _notes_of_weights(chosen: _Set, file: ForeignFile) -> tuple[str, ...]:
    notes = [f"weights: {chosen.title}"] if chosen.root else []
    if chosen.preferred:
        said = f"the averaged ones ({chosen.title}), as timm loads them"
        notes = [f"weights: {said}; --weights raw for the others"]
    used = set(chosen.names.values())
    left = [name for name in file.tensors if name not in used]
    if left:
        groups = _groups(left, used)
        listed = ", ".join(groups[:_NUM_LISTED]) + (", …" if len(groups) > _NUM_LISTED else "")
        notes.append(f"left out: {listed} ({_count(len(left))})")
    return tuple(notes)


def _count(number: int) -> str:
    return "1 tensor" if number == 1 else f"{number} tensors"


def _groups(left: Iterable[str], used: Iterable[str]) -> list[str]:
    """Return the shortest prefixes that hold what is left and nothing that is used."""
    taken = {
        name[:i] for name in used for i in range(len(name) + 1) if name[i : i + 1] in (".", "")
    }
    groups: dict[str, None] = {}
    for name in left:
        parts = name.split(".")
        prefixes = (".".join(parts[: i + 1]) for i in range(len(parts)))
        groups[next((p for p in prefixes if p not in taken), name)] = None
    return [*groups]
