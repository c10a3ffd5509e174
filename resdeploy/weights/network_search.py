"""The architecture that a file's weights belong to, found by names and shapes.

Of an architecture and its options, the names and shapes of its weights are known without memory for
them. It fits under a root of the file if each of its weights is there, in its shape. What else is
there must be no part of it:

1. a weight in a module that the network has (`layer1.2.conv1.weight`, for a resnet18) contradicts
   it;
2. a weight beside those modules, under the same root, contradicts it too, unless its name says that
   it is of no use in inference: a loss, a projection head, a head of another task, a counter;
3. what lies under other roots is left out.

Options of whole numbers (channels, width) are solved for: each moves some size in proportion. Of
those that name a choice, the value is taken that has most in common with the file, one after the
other; values of the same names and shapes leave the default.

Networks are built, without memory, to compare names and shapes; which of them is worth it, their
outlines say.
"""

import functools
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from resdeploy.errors import ResdeployError
from resdeploy.networks import ARCHITECTURES, build_network
from resdeploy.schema.recipes import ModelSpec, Scalar
from resdeploy.weights.naming import CLASSIFIERS, View, views
from resdeploy.weights.outlines import COUNTER, Outline, known_outlines, outline_of

__all__ = ["Fit", "find_fits", "fit_names", "nearest_differences", "outline_of_architecture"]

Shapes = Mapping[str, tuple[int, ...]]

# No option of inference: the same weights, the same outputs.
_TRAINING_OPTIONS = ("zero_init_last_gamma", "norm_momentum", "norm_eps")
_NOT_IN_INFERENCE = re.compile(
    r"(?i)(.*[._])?(loss\w*|criterion\w*|metrics?|\w*_metrics?|center(s|_loss)|n_averaged|queue\w*"
    r"|proj(ector|ection\w*)|\w*_proj|predictor|prototypes?|aux\w*|\w+_head|head_\w+|decoder"
    r"|\w+_classifier|rotation\w*|ema|\w+_ema|ema_\w+|optimizer\w*|\w*scheduler\w*|scaler|epoch"
    r"|step|global_step|best_\w+|acc\w*|teacher|momentum_\w+)([._].*)?"
)
_MOST_TRIED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A network whose weights are all in a file.

    Attributes:
        model: the network.
        view: the names of the file that it is found in.
        names: the file's full name of each weight, by the network's; without absent counters.
        classifier: the file's name of the last layer, where it is not the network's.
    """

    model: ModelSpec
    view: View
    names: Mapping[str, str]
    classifier: str | None


# Of an architecture with its options, in a view of a file's shapes.
Search = Callable[[str, Mapping[str, Scalar], View, Shapes], Fit | None]


def find_fits(
    tensors: Mapping[str, Tensor],
    *,
    arch: str | None = None,
    options: Mapping[str, Scalar] | None = None,
) -> list[Fit]:
    """Return every network that the tensors hold whole, of `arch` with `options` if that is given.

    A network within another one that fits too is none. Several fits under one root are networks
    that neither names nor shapes tell apart.

    Raises:
        ResdeployError: there is no such architecture, or an option that it has not.
    """
    given = dict(options or {})
    outlines = known_outlines() if arch is None else {arch: outline_of_architecture(arch, given)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fits: list[Fit] = []
    for view in views(shapes, {outline.anchor for outline in outlines.values()}):
        near = {name: one for name, one in outlines.items() if one.is_near(view)}
        same = [name for name, one in near.items() if one.has_sizes_of(view, shapes)]
        resized = [name for name, one in near.items() if one.has_names_of(view)]
        # Only what no defaults fit has other sizes, and then other choices.
        fits += (
            _found(_fit, same, given, view, shapes)
            or _found(_fit_in_size, resized, given, view, shapes)
            or _found(_fit_with_choices, _likeliest(near, given, view, shapes), given, view, shapes)
        )
    used = {id(fit): frozenset(fit.names.values()) for fit in fits}
    whole = [f for f in fits if not any(used[id(f)] < used[id(other)] for other in fits)]
    # The same network by two views, where a scheme changed only what is left out.
    return [*{(f.model.arch, used[id(f)]): f for f in reversed(whole)}.values()][::-1]


def outline_of_architecture(arch: str, options: Mapping[str, Scalar] | None = None) -> Outline:
    """Return the outline of an architecture, which is built for it.

    Raises:
        ResdeployError: as `find_fits`.
    """
    given = dict(options or {})
    return outline_of(_shapes_of(arch, given), _classifier_of(arch, given))


def _found(
    search: Search, archs: Iterable[str], options: Mapping[str, Scalar], view: View, shapes: Shapes
) -> list[Fit]:
    return [fit for name in archs if (fit := search(name, options, view, shapes)) is not None]


def fit_names(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> list[Mapping[str, str]]:
    """Return, for each root that fits, the file's full names of a module's weights, by its own.

    The module is of any architecture; its names are taken as they are.
    """
    needed = [name for name in wanted if not name.endswith(COUNTER)] or [*wanted]
    found: list[Mapping[str, str]] = []
    roots = {name.removesuffix(needed[0]) for name in tensors if name.endswith(needed[0])}
    for root in sorted(root for root in roots if root in ("",) or root.endswith(".")):
        names = {name: root + name for name in wanted if root + name in tensors}
        if all(
            name in names and tensors[names[name]].shape == wanted[name].shape for name in needed
        ):
            found.append(names)
    return found


def nearest_differences(
    tensors: Mapping[str, Tensor], arch: str | None, options: Mapping[str, Scalar]
) -> tuple[str, dict[str, Tensor]] | None:
    """Return the architecture that has most names in common, and the weights under its root."""
    best: tuple[float, str, View] | None = None
    for name in [*ARCHITECTURES] if arch is None else [arch]:
        wanted = _shapes_of(name, options)
        for view in views(tensors, {next(iter(wanted))}):
            score = _in_common(wanted, view.names)
            if best is None or score > best[0]:
                best = (score, name, view)
    if best is None:
        return None
    return best[1], {name: tensors[full] for name, full in best[2].names.items()}


def _fit(arch: str, options: Mapping[str, Scalar], view: View, shapes: Shapes) -> Fit | None:
    """Return the fit with just these options, or None."""
    if not _has_names(arch, options, view):
        return None
    return _match(arch, options, view, shapes)


def _fit_in_size(
    arch: str, options: Mapping[str, Scalar], view: View, shapes: Shapes
) -> Fit | None:
    """Return the fit with these options and others for the sizes, or None."""
    if not _has_names(arch, options, view):
        return None
    solved = _solve_numbers(arch, options, view, shapes)
    return _match(arch, {**options, **solved}, view, shapes)


def _fit_with_choices(
    arch: str, options: Mapping[str, Scalar], view: View, shapes: Shapes
) -> Fit | None:
    """Return the fit with other choices too: step by step the one that has most in common."""
    best = _likeness(arch, options, view, shapes)
    while True:
        nearer = max(
            ((_likeness(arch, {**options, **c}, view, shapes), c) for c in _choices(arch, options)),
            key=lambda pair: pair[0],
            default=(best, {}),
        )
        if nearer[0] <= best:
            return None
        best, options = nearer[0], {**options, **nearer[1]}
        if (found := _fit_in_size(arch, options, view, shapes)) is not None:
            return found


def _likeliest(
    archs: Iterable[str], options: Mapping[str, Scalar], view: View, shapes: Shapes
) -> list[str]:
    """Return the architectures that have most in common with the file; each costs seconds."""
    scores = {name: _likeness(name, options, view, shapes) for name in archs}
    return sorted(scores, key=lambda name: scores[name], reverse=True)[:_MOST_TRIED]


def _likeness(
    arch: str, options: Mapping[str, Scalar], view: View, shapes: Shapes
) -> tuple[float, float]:
    """Return the shares of names, and of sizes, that are in common."""
    try:
        wanted = _shapes_of(arch, options)
    except ResdeployError:  # a choice that the architecture does not take with another
        return 0.0, 0.0
    there = {name: shapes[view.names[name]] for name in wanted if name in view.names}
    # Size by size: of a stem, the kernel is found before the channels are solved for.
    same = sum(_same_sizes(wanted[name], shape) for name, shape in there.items())
    return _in_common(wanted, view.names), same / len(wanted)


def _same_sizes(shape: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Return the share of equal sizes in two shapes; 0 where one has more axes."""
    if len(shape) != len(other):
        return 0.0
    return sum(a == b for a, b in zip(shape, other, strict=True)) / max(1, len(shape))


def _has_names(arch: str, options: Mapping[str, Scalar], view: View) -> bool:
    """Test for the names of all weights, but for those of the last layer."""
    wanted = _shapes_of(arch, options)
    missing = [n for n in wanted if n not in view.names and not n.endswith(COUNTER)]
    if not missing:
        return True
    last = _classifier_of(arch, options)
    return bool(last) and all(name.startswith(last) for name in missing)


def _match(arch: str, options: Mapping[str, Scalar], view: View, shapes: Shapes) -> Fit | None:
    last = _classifier_of(arch, options)
    head = _find_classifier(arch, options, last, view, shapes) if last else None
    num_classes = head[1] if head else _solve_classes(arch, options, view, shapes)
    if num_classes is None:
        return None
    wanted = _shapes_of(arch, options, num_classes)
    names = {name: view.names[name] for name in wanted if name in view.names}
    if head:
        names |= {n: head[0] + n.removeprefix(last) for n in wanted if n.startswith(last)}
    fits = all(
        shapes[names[name]] == shape if name in names else name.endswith(COUNTER)
        for name, shape in wanted.items()
    )
    if not fits or _contradicted(wanted, names, view):
        return None
    return Fit(
        model=ModelSpec(arch=arch, num_classes=num_classes, options=options),
        view=view,
        names=names,
        classifier=head[0].removesuffix(".") if head and head[0] != view.root + last else None,
    )


def _solve_classes(
    arch: str, options: Mapping[str, Scalar], view: View, shapes: Shapes
) -> int | None:
    """Return the number of classes where no one layer decides it; 0 for a trunk without a head."""
    one, other = (_shapes_of(arch, options, num_classes) for num_classes in (10, 11))
    moved = [name for name in one if one[name] != other.get(name)]
    if len({name.rpartition(".")[0] for name in moved}) != 1:
        there = next((name for name in moved if name in view.names), None)
        return None if there is None else shapes[view.names[there]][0]
    # A head that is not understood is no trunk alone.
    heads = {name.partition(".")[0] for name in CLASSIFIERS}
    if any(
        name.startswith(tuple(f"{p}{h}." for p in _places(view) for h in heads)) for name in shapes
    ):
        return None
    try:
        _shapes_of(arch, options, 0)
    except ResdeployError:  # an architecture that has always a head
        return None
    return 0


def _places(view: View) -> tuple[str, ...]:
    """Return the prefixes under which a classifier may lie: the trunk's, and that around it."""
    around = view.root.removesuffix(".").rpartition(".")[0]
    return tuple(dict.fromkeys((view.root, f"{around}." if around else "")))


def _find_classifier(
    arch: str, options: Mapping[str, Scalar], last: str, view: View, shapes: Shapes
) -> tuple[str, int] | None:
    """Return the full prefix of the last layer in the file, and the number of classes.

    It has the network's name for it, or another of `CLASSIFIERS` beside the trunk or around it.
    """
    wanted = _shapes_of(arch, options)
    leaves = {n.removeprefix(last): shape[1:] for n, shape in wanted.items() if n.startswith(last)}
    prefixes = {
        f"{place}{name}.": f"{place}{name.partition('.')[0]}."
        for place in _places(view)
        for name in CLASSIFIERS
    }
    if f"{last}weight" in view.names:
        own = view.names[f"{last}weight"].removesuffix("weight")
        prefixes = {own: own}
    found = []
    for prefix, room in prefixes.items():
        there = {leaf: shapes[prefix + leaf] for leaf in leaves if prefix + leaf in shapes}
        counts = {shape[0] for shape in there.values()}
        # A layer among others, `classifier.1` beside `classifier.4`, is not the only one.
        alone = sum(name.startswith(room) for name in shapes) == len(leaves)
        if alone and len(counts) == 1 and {n: s[1:] for n, s in there.items()} == leaves:
            found.append((prefix, counts.pop()))
    return found[0] if len(found) == 1 else None


def _contradicted(wanted: Shapes, names: Mapping[str, str], view: View) -> bool:
    """Test for weights that the network ought to have, by rules 1 and 2."""
    modules = {name.partition(".")[0] for name in wanted}
    used = set(names.values())
    for name, full in view.names.items():
        if full in used:
            continue
        if name.partition(".")[0] in modules:
            if not name.endswith(COUNTER):
                return True
        elif not _NOT_IN_INFERENCE.fullmatch(name):
            return True
    return False


def _in_common(wanted: Iterable[str], names: Iterable[str]) -> float:
    ours, theirs = ({n for n in group if not n.endswith(COUNTER)} for group in (wanted, names))
    return len(ours & theirs) / len(ours | theirs)


# --- what an architecture's weights look like -----------------------------------------------------


def _shapes_of(
    arch: str, options: Mapping[str, Scalar], num_classes: int = 10
) -> dict[str, tuple[int, ...]]:
    return _cached_shapes(arch, tuple(sorted(options.items())), num_classes)


@functools.cache
def _cached_shapes(
    arch: str, options: tuple[tuple[str, Scalar], ...], num_classes: int
) -> dict[str, tuple[int, ...]]:
    model = ModelSpec(arch=arch, num_classes=num_classes, options=dict(options))
    with torch.device("meta"):
        state_dict = build_network(model).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def _classifier_of(arch: str, options: Mapping[str, Scalar]) -> str:
    """Return the prefix of the layer whose size is the number of classes; "" without one."""
    one, other = (_shapes_of(arch, options, num_classes) for num_classes in (10, 11))
    moved = {name.rpartition(".")[0] for name in one if one[name] != other.get(name)}
    return f"{moved.pop()}." if len(moved) == 1 else ""


def _choices(arch: str, given: Mapping[str, Scalar]) -> Iterator[Mapping[str, Scalar]]:
    """Yield each value of each option that names a choice and is not given."""
    for name, option in ARCHITECTURES[arch].options.items():
        if name not in given and name not in _TRAINING_OPTIONS:
            for value in _values(name, option.annotation, option.default):
                yield {name: value}


def _values(name: str, kind: Any, default: Any) -> list[Scalar]:
    """Return the values of an option other than its default, where they can be counted."""
    if name == "dropout":
        return [0.5]  # any: in inference it moves the number in a name, and nothing else
    if kind is bool:
        return [not default]
    if typing.get_origin(kind) is Literal:
        return [value for value in typing.get_args(kind) if value != default]
    return []


def _solve_numbers(
    arch: str, options: Mapping[str, Scalar], view: View, shapes: Shapes
) -> dict[str, Scalar]:
    """Return the options of whole numbers that are not the default."""
    wanted = _shapes_of(arch, options)
    solved: dict[str, Scalar] = {}
    for name, option in ARCHITECTURES[arch].options.items():
        if option.annotation is not int or name in options:
            continue
        value = _solve(arch, options, name, option.default, wanted=wanted, view=view, shapes=shapes)
        if value is not None and value != option.default:
            solved[name] = value
    return solved


def _solve(
    arch: str,
    options: Mapping[str, Scalar],
    name: str,
    default: int,
    *,
    wanted: Shapes,
    view: View,
    shapes: Shapes,
) -> int | None:
    """Solve for an option by the first size that it moves, from its double."""
    try:
        doubled = _shapes_of(arch, {**options, name: 2 * default})
    except ResdeployError:
        return None
    for weight, shape in wanted.items():
        there, full = doubled.get(weight, ()), view.names.get(weight)
        if full is None or len(there) != len(shape) or len(shapes[full]) != len(shape):
            continue
        for axis, (once, twice) in enumerate(zip(shape, there, strict=True)):
            if once != twice:
                value = default + default * (shapes[full][axis] - once) / (twice - once)
                return int(value) if value == int(value) and value >= 1 else None
    return None
