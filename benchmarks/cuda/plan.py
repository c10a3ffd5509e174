"""Cases of a run, the most informative first: it may be cut short at any moment."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cuda.records import Case, Form, arithmetic, session_title
from resdeploy.bench.in_turn import Contender
from resdeploy.schema.benchmarks import BenchSpec, RunnerSpec
from resdeploy.schema.sessions import SessionSpec

__all__ = ["BATCHES", "NETWORKS", "cases_for", "choose", "peers_of", "settings_of"]

# The one that everyone compares by is the first. ResNet-152 is last: it takes longest to make.
NETWORKS = ("resnet50", "resnet18", "cifar_resnet20", "residual_mlp", "resnet152")
BATCHES = (1, 8, 32, 128, 256)
# One request at a time, and a batch that fills most devices: what the others lie between.
_TELLING_BATCHES = (1, 32)
_FORMS: tuple[Form, ...] = ("float32", "float16", "int8")
# Of CUDA: channels first or last, every kernel launched by itself or all as one graph.
_LAYOUTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"cuda_graph": True},
    {"prefer_nhwc": True},
    {"prefer_nhwc": True, "cuda_graph": True},
)


def cases_for(
    provider: str, networks: Sequence[str], batches: Sequence[int], num_blocks: int
) -> list[Case]:
    """Return every case, each once.

    First the device, then of each network the verdicts, the telling batches and one block beside
    the others; then the further blocks, without which a ratio has no interval; then the rest.
    """
    telling = [size for size in batches if size in _TELLING_BATCHES] or list(batches)
    others = [size for size in batches if size not in telling]
    cases = [Case(kind="ceilings")]
    for network in networks:
        cases += _models(network)
        cases += _verified(network, provider)
        cases += _timed(network, provider, telling)
        cases += _in_turn(network, telling, block=0)
    for block, network in itertools.product(range(1, num_blocks), networks):
        cases += _in_turn(network, telling, block=block)
    for network in networks:
        cases += _timed(network, provider, others)
    for block, network in itertools.product(range(num_blocks), networks):
        cases += _in_turn(network, others, block=block)
    return cases


def choose(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """Return the cases whose title has every word of one of `only`; all of them if it is empty."""
    wanted = [set(words.split()) for words in only]
    return [
        case for case in cases if not wanted or any(w <= set(case.title.split()) for w in wanted)
    ]


def _models(network: str) -> Iterator[Case]:
    for form in _FORMS:
        yield Case(kind="model", network=network, form=form)


def _verified(network: str, provider: str) -> Iterator[Case]:
    for form, session in _sessions(provider):
        # What is certified there is the file and the arithmetic; the others differ in settings.
        is_plain = form == "float32" and session == SessionSpec(provider=provider)
        yield Case(kind="verify", network=network, form=form, session=session, thorough=is_plain)


def _timed(network: str, provider: str, batches: Sequence[int]) -> Iterator[Case]:
    for size, (form, session) in itertools.product(batches, _sessions(provider)):
        yield Case(kind="bench", network=network, form=form, session=session, batch_size=size)


def _in_turn(network: str, batches: Sequence[int], *, block: int) -> Iterator[Case]:
    for size in batches:
        yield Case(kind="peers", network=network, batch_size=size, block=block)
        for form in ("float32", "float16"):
            yield Case(kind="settings", network=network, form=form, batch_size=size, block=block)


def _sessions(provider: str) -> list[tuple[Form, SessionSpec]]:
    """Return every form in every session; the plain ones first."""
    found: list[tuple[Form, SessionSpec]] = []
    for changes in _LAYOUTS if provider == "cuda" else _LAYOUTS[:1]:
        for form in _FORMS:
            plain = SessionSpec(provider=provider)
            found.append((form, dataclasses.replace(plain, **changes)))
            if provider == "cuda" and form == "float32":
                found.append((form, dataclasses.replace(plain, use_tf32=True, **changes)))
    return found


def settings_of(provider: str, form: Form, model: Path) -> dict[str, Contender]:
    """Return resdeploy's own choice first, and then what could be chosen instead.

    On CUDA these are what `resdeploy.session.providers` gives a reason for; on another provider,
    what its session has to choose, so that the comparison itself can be tried anywhere.
    """
    plain = SessionSpec(provider=provider)

    def session(**changes: Any) -> Contender:
        return model, BenchSpec(session=dataclasses.replace(plain, **changes))

    def options(**changed: str) -> Contender:
        return model, BenchSpec(session=plain, runner=RunnerSpec(options=changed))

    if provider != "cuda":
        return {
            "as chosen": session(),
            "graph level extended": session(graph_level="extended"),
            "one thread": session(num_threads=1),
            "no spinning": session(spinning=False),
        }
    found = {
        "as chosen": session(),
        "algorithms: HEURISTIC": options(cudnn_conv_algo_search="HEURISTIC"),
        "algorithms: DEFAULT": options(cudnn_conv_algo_search="DEFAULT"),
        "workspace of 32 MB": options(cudnn_conv_use_max_workspace="0"),
        "convolutions with their bias": options(fuse_conv_bias="1"),
        "an arena that doubles": options(arena_extend_strategy="kNextPowerOfTwo"),
        "one stream for the provider": options(use_ep_level_unified_stream="1"),
        "NHWC": session(prefer_nhwc=True),
        "graph": session(cuda_graph=True),
        "NHWC, graph": session(prefer_nhwc=True, cuda_graph=True),
    }
    if form == "float32":
        found["TF32"] = session(use_tf32=True)
    return found


def peers_of(provider: str, checkpoint: Path, models: Mapping[Form, Path]) -> dict[str, Contender]:
    """Return the ways to run a network on a device: ours, ONNX Runtime's own, TensorRT's, torch's.

    Args:
        provider: ours.
        checkpoint: the trained weights, for torch.
        models: the ONNX file of each form.
    """
    plain = SessionSpec(provider=provider)

    def by(runner: str, model: Path) -> Contender:
        return model, BenchSpec(session=plain, runner=RunnerSpec(name=runner))

    found: dict[str, Contender] = {
        f"resdeploy {arithmetic(form, session)} {session_title(session)}": (
            models[form],
            BenchSpec(session=session),
        )
        for form, session in _ours(provider)
    }
    for form in ("float32", "float16"):
        found[f"ONNX Runtime's own defaults, {form}"] = by("onnxruntime", models[form])
        if provider == "cuda":
            found[f"TensorRT provider, {form}"] = (
                models[form],
                BenchSpec(session=SessionSpec(provider="tensorrt")),
            )
    return found | {name: by(name, checkpoint) for name in _TORCH}


# The others are slower on a GPU, and all must fit into its memory together.
_TORCH = (
    *("torch", "torch-exact", "torch-channels-last-half", "torch-compile-max"),
    *("torch-compile-max-half", "torch-graph", "torch-graph-half"),
)


def _ours(provider: str) -> list[tuple[Form, SessionSpec]]:
    """Return the sessions that may win; more of them would not fit into memory together."""
    plain = SessionSpec(provider=provider)
    if provider != "cuda":
        return [("float32", plain), ("int8", plain)]
    graph = dataclasses.replace(plain, cuda_graph=True)
    last = dataclasses.replace(graph, prefer_nhwc=True)
    return [
        ("float32", plain),
        ("float32", graph),
        ("float32", dataclasses.replace(graph, use_tf32=True)),
        ("float32", dataclasses.replace(last, use_tf32=True)),
        ("float16", graph),
        ("float16", last),
    ]
