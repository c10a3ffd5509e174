"""Null distribution of the verdict: the rate of false alarms on correct implementations.

Networks with random weights and perturbed BatchNorm statistics go through implementations that are
all correct, and differ in the order of summation, in the kernels, and in where and how BatchNorm
was folded. Each outcome on a fresh set of inputs is a verdict; files are also certified by wiring,
weights and single layers (L0 to L2) at each graph level. Any failure is a false alarm.

    python benchmarks/verify/null.py --json benchmarks/verify/null.json
"""

import copy
import itertools
import json
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from resdeploy.data.input_kinds import FLOATS
from resdeploy.errors import EnvironmentLacksError
from resdeploy.export.export import export_onnx
from resdeploy.export.fold_module import fold_batchnorm
from resdeploy.export.golden import make_golden, run_module
from resdeploy.export.reference import reference_graph
from resdeploy.export.source import SourceModel, example_inputs
from resdeploy.graph.onnx_file import load_onnx
from resdeploy.machine.environment import read_environment
from resdeploy.networks import build_network, input_shape
from resdeploy.schema.codec import to_json
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import ModelSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.run import run_session
from resdeploy.session.session import open_session
from resdeploy.verify.certify import certify_file, certify_run
from resdeploy.verify.end_to_end import judge_end_to_end

NETWORKS = (
    *(("resnet18", seed) for seed in range(3)),
    *(("resnet34", 0), ("resnet50", 0), ("resnet50", 1), ("resnext50_32x4d", 0)),
    *(("cifar_resnet20", 0), ("cifar_resnet20", 1), ("cifar_resnet56", 0)),
    *(("cifar_preact_resnet20", 0), ("resnet8_tiny", 0), ("residual_mlp", 0)),
)
IMAGE_PX = 32
LEVELS = ("disabled", "basic", "extended", "all")
FEW, MANY = 8, 128

Run = Callable[[np.ndarray], np.ndarray]


def make_network(arch: str, seed: int) -> SourceModel:
    spec = ModelSpec(arch=arch, num_classes=10)
    shape = input_shape(spec)
    if len(shape) == 3 and shape[1] > IMAGE_PX:
        shape = (shape[0], IMAGE_PX, IMAGE_PX)
    torch.manual_seed(seed)
    module = build_network(spec)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = 0.5
    with torch.no_grad():  # statistics as training would leave them, then a little off
        for _ in range(6):
            module.train()(torch.randn(16, *shape))
    for norm in norms:
        norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    return SourceModel(module=module.eval(), input_shape=shape, description=arch, info=None)


# --- implementations -----------------------------------------------------------------------------


def torch_run(module: nn.Module) -> Run:
    return lambda inputs: run_module(module, inputs, dtype=torch.float32)


def channels_last(module: nn.Module) -> Run:
    moved = copy.deepcopy(module).to(memory_format=torch.channels_last)

    def run(inputs: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(inputs)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return moved(x).numpy()

    return run


def without_onednn(module: nn.Module) -> Run:
    def run(inputs: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
            return run_module(module, inputs, dtype=torch.float32)

    return run


def one_by_one(module: nn.Module) -> Run:
    def run(inputs: np.ndarray) -> np.ndarray:
        rows = [run_module(module, x[None], dtype=torch.float32) for x in inputs]
        return np.concatenate(rows)

    return run


def folded_in_float32(module: nn.Module) -> nn.Module:
    """Fold as `torch.nn.utils.fusion` does, wherever a BatchNorm is the next child."""
    folded = copy.deepcopy(module)
    for parent in folded.modules():
        children = list(parent.named_children())
        for (first, layer), (second, norm) in itertools.pairwise(children):
            fuse = {nn.Conv2d: fuse_conv_bn_eval, nn.Linear: fuse_linear_bn_eval}.get(type(layer))
            if fuse is not None and isinstance(norm, nn.modules.batchnorm._BatchNorm):
                setattr(parent, first, fuse(layer, norm))
                setattr(parent, second, nn.Identity())
    return folded


def session_run(path: Path, **options: Any) -> Run:
    session = open_session(path, SessionSpec(num_threads=1, **options))
    return lambda inputs: run_session(session, inputs)


def implementations(source: SourceModel, folded: Path, unfolded: Path) -> dict[str, Run]:
    module = source.module
    found = {
        "torch": torch_run(module),
        "torch channels_last": channels_last(module),
        "torch without oneDNN": without_onednn(module),
        "torch one by one": one_by_one(module),
        "torch, our fold": torch_run(fold_batchnorm(module, example_inputs(source)).module),
        **{f"onnxruntime {level}": session_run(folded, graph_level=level) for level in LEVELS},
        "onnxruntime all, unfolded": session_run(unfolded),
    }
    if "preact" not in source.description:  # there, the next child is not what it normalises
        found["torch, float32 fold"] = torch_run(folded_in_float32(module))
    try:
        hint = {"provider": "openvino", "precision_hint": "f32"}
        found["openvino f32"] = session_run(folded, **hint)
    except EnvironmentLacksError as error:
        click.echo(f"without OpenVINO: {error.what}", err=True)
    return found


# --- verdicts ------------------------------------------------------------------------------------


@contextmanager
def exported(source: SourceModel, *, fold: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(source, ExportSpec(fold=fold), path)
        yield path


class Tally:
    """Counts verdicts and keeps the largest figure of each kind."""

    def __init__(self) -> None:
        self.num_verdicts = 0
        self.alarms: list[str] = []
        self.maxima: dict[str, dict[str, float]] = defaultdict(dict)

    def add(self, who: str, reasons: tuple[str, ...], **figures: float | None) -> None:
        """Count a verdict of "implementation on network"."""
        self.num_verdicts += 1
        self.alarms += [f"{who}: {reason}" for reason in reasons]
        name = who.partition(" on ")[0]
        for key, value in figures.items():
            if value is not None:
                self.maxima[name][key] = max(value, self.maxima[name].get(key, 0.0))


def certify(source: SourceModel, path: Path, reference: Any, inputs: np.ndarray, tally: Tally):
    candidate = certify_file(load_onnx(path), reference)
    assert candidate.structure is not None
    assert candidate.static is not None
    file = "unfolded file" if candidate.static.max_ulp < 0.1 else "folded file"
    reasons = candidate.structure.differences + candidate.static.reasons
    tally.add(f"{file} on {source.description}", reasons, ulp=candidate.static.max_ulp)
    for level in LEVELS[:3]:
        spec = SessionSpec(graph_level=level, num_threads=1)
        outcome = certify_run(candidate, inputs, lambda m, x, s=spec: open_session(m, s).run(x))
        assert not isinstance(outcome, str), outcome
        nodes = outcome[0]
        who = f"{file}, layers at {level} on {source.description}"
        tally.add(who, nodes.reasons, of_estimate=nodes.worst.of_estimate)


@click.command()
@click.option("--sets", default=8, show_default=True, help="Sets of inputs for each network.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(sets: int, json_path: Path | None) -> None:
    """Judge correct implementations and count the failures."""
    torch.set_num_threads(1)  # two, on a busy machine, wait for each other
    environment = read_environment()
    tally = Tally()
    for arch, seed in NETWORKS:
        source = make_network(arch, seed)
        with exported(source, fold=True) as folded, exported(source, fold=False) as unfolded:
            candidates = implementations(source, folded, unfolded)
            for index in range(sets):
                num_inputs = MANY if index == 0 else FEW
                inputs = FLOATS.draw((num_inputs, *source.input_shape), seed=index)
                golden = make_golden(
                    source.module, inputs, source=arch, inputs_description=f"seed {index}"
                )
                if index == 0:
                    reference = reference_graph(source, golden)
                    certify(source, folded, reference, inputs, tally)
                    certify(source, unfolded, reference, inputs, tally)
                for name, run in candidates.items():
                    c = judge_end_to_end(run(inputs), golden)
                    tally.add(
                        f"{name} on {arch} {seed}, inputs {index}",
                        c.reasons,
                        R=c.noise_ratio,
                        z_rms=c.z_rms,
                        z_max=c.z_max,
                        T=c.systematic,
                    )
        click.echo(f"{arch} {seed}: {tally.num_verdicts} verdicts, {len(tally.alarms)} alarms")
    for alarm in tally.alarms:
        click.echo(alarm)
    if json_path is not None:
        record = {
            "environment": to_json(environment),
            "torch": torch.__version__,
            "networks": [f"{arch}, seed {seed}" for arch, seed in NETWORKS],
            "num_verdicts": tally.num_verdicts,
            "false_alarms": tally.alarms,
            "maxima": tally.maxima,
        }
        json_path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
