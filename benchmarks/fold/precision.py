"""Share of rounded folded weights in the outputs' error: resdeploy against torch's fold.

Both fold the same network; the folded float32 weights are then evaluated in float64, so that what
is left is the error of the weights alone. The claim is the ratio of the two errors, each the
Euclidean distance of all logits from those of the unfolded network in float64.

    python benchmarks/fold/precision.py --json benchmarks/fold/precision.json
"""

import json
from pathlib import Path

import click
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from resdeploy.export.export import stage_versions
from resdeploy.export.fold_module import fold_batchnorm
from resdeploy.machine.environment import read_environment
from resdeploy.networks import build_network
from resdeploy.schema.codec import to_json
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.recipes import ModelSpec

NETWORKS = {"resnet18": 3, "resnet50": 3, "resnet152": 2}  # and how many random ones of each
PIXELS, NUM_IMAGES = 96, 4


def random_network(arch: str, seed: int) -> nn.Module:
    """Return a network whose BatchNorms are far from the identity, with statistics of data."""
    torch.manual_seed(seed)
    network = build_network(ModelSpec(arch=arch, num_classes=1000))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.normal_(norm.bias, 0, 0.3)
        nn.init.normal_(norm.weight, 1, 0.2)
    with torch.no_grad():
        network(torch.randn(8, 3, PIXELS, PIXELS))
        for norm in norms:  # as if trained on other data than these images
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    return network.eval()


def fold_by_torch(network: nn.Module, report: FoldReport) -> dict[str, torch.Tensor]:
    """Return the weights as torch.nn.utils.fusion folds each pair, in float32."""
    state = dict(network.state_dict())
    folded = {}
    for site in report.folded:
        conv, norm = network.get_submodule(site.producer), network.get_submodule(site.site)
        weight, bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        folded[f"{site.producer}.weight"], folded[f"{site.producer}.bias"] = weight, bias
    others = {k: v for k, v in state.items() if k.startswith("fc.")}
    return {name: tensor.detach() for name, tensor in (folded | others).items()}


def logits_in_float64(arch: str, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the outputs of the folded weights with all else in float64."""
    spec = ModelSpec(arch=arch, num_classes=1000, options={"norm": "none"})
    network = build_network(spec).double().eval()
    network.load_state_dict({name: tensor.double() for name, tensor in weights.items()})
    with torch.no_grad():
        return network(x)


@click.command()
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(json_path: Path | None) -> None:
    """Fold each network both ways and print the ratio of the errors."""
    rows = []
    for arch, count in NETWORKS.items():
        for seed in range(count):
            network = random_network(arch, seed)
            x = torch.randn(NUM_IMAGES, 3, PIXELS, PIXELS, dtype=torch.float64)
            folded = fold_batchnorm(network, x[:2].float())
            by_torch = fold_by_torch(network, folded.report)
            ours = {name: tensor.detach() for name, tensor in folded.module.state_dict().items()}
            with torch.no_grad():
                exact = network.double()(x)
            errors = {
                name: float((logits_in_float64(arch, weights, x) - exact).norm() / exact.norm())
                for name, weights in (("resdeploy", ours), ("torch.nn.utils.fusion", by_torch))
            }
            ratio = errors["torch.nn.utils.fusion"] / errors["resdeploy"]
            rows.append({"network": arch, "seed": seed, "rel_l2": errors, "ratio": ratio})
            click.echo(f"{arch:10} seed {seed}  {errors}  ratio {ratio:.2f}")
    result = {
        "question": "error of the outputs from the folded weights alone: torch's fold / ours",
        "rows": rows,
        "geometric_mean_ratio": {
            arch: float(
                torch.tensor([r["ratio"] for r in rows if r["network"] == arch]).log().mean().exp()
            )
            for arch in NETWORKS
        },
        "versions": stage_versions(),
        "environment": to_json(read_environment()),
    }
    click.echo(str(result["geometric_mean_ratio"]))
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
