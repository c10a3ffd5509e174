"""Speed of a step of `resdeploy train`, against torch's own plain loop and the roofline.

    python -m benchmarks.cuda.train_speed --json benchmarks/cuda/train_speed.json
    python -m benchmarks.cuda.train_speed --device cpu --arch resnet18 --side 32 --batch 2 --steps 4

Competitors are steps of the product (its own `train`, a whole epoch of it) and of the loop that
torch's tutorials have, in the same arithmetics, on the same synthetic images of 8 bits. They take
turns in this one process, an epoch each, in an order that turns round: A B C, C B A. The product
normalises its images anew in each step; the loop has its tensors on the device from the start, and
so shows what everything but the arithmetic costs.

The share of the roofline counts three times the multiplications of a forward pass (forward, and
backward by inputs and by weights), at the rate of a large matrix product in that arithmetic.
"""

import dataclasses
import json
import math
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from resdeploy.errors import EnvironmentLacksError, ReportedError
from resdeploy.files import atomic_write
from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import Record, record, to_json
from resdeploy.schema.machines import Environment
from resdeploy.schema.recipes import DataSpec, ModelSpec, Preprocess, Recipe, TrainSpec
from resdeploy.statistics.paired import mean_ratio

__all__ = ["SpeedReport", "Way", "WaySpeed", "main", "measure_ways", "ways_on"]

NUM_CLASSES = 10
# Forward, and backward by the inputs and by the weights: each as many as the forward pass.
_PASSES = 3


@record
class Way(Record):
    """One way to train: whose loop, and in what arithmetic and form."""

    loop: str
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False

    @property
    def title(self) -> str:
        """Words for a table."""
        words = [self.loop, self.precision]
        words += ["channels last"] * self.channels_last + ["compiled"] * self.compile
        return ", ".join(words)


@record
class WaySpeed(Record):
    """Result of a way.

    Attributes:
        way: it.
        epochs_s: seconds of each epoch that was timed; the ones before it, which compile and warm
            up, apart.
        warmup_s: seconds of those.
        images_per_s: by the median epoch.
        roofline_share: the least time that the multiplications take over that of the median epoch;
            None where the device's rate is not known.
        failure: why there are no times.
    """

    way: Way
    epochs_s: tuple[float, ...] = ()
    warmup_s: tuple[float, ...] = ()
    images_per_s: float | None = None
    roofline_share: float | None = None
    failure: str | None = None


@record
class SpeedReport(Record):
    """Every way to train one network on one device.

    Attributes:
        arch: the network.
        side: of its images, in pixels.
        batch_size: of a step.
        num_steps: of an epoch.
        device: torch's name for it.
        macs_per_image: multiplications with addition of one forward pass.
        speeds: of each way.
        ratios: time of the product over that of torch's loop in the same arithmetic and form, as
            (ratio, low, high), by title.
        environment: the machine.
    """

    arch: str
    side: int
    batch_size: int
    num_steps: int
    device: str
    macs_per_image: int
    speeds: tuple[WaySpeed, ...]
    ratios: dict[str, tuple[float, ...]]
    environment: Environment


def ways_on(*, compiles: bool) -> list[Way]:
    """Return the ways: both loops, in the same forms."""
    forms: list[dict[str, Any]] = [
        {},
        {"precision": "bfloat16", "channels_last": True},
    ]
    if compiles:
        forms.append({"precision": "bfloat16", "channels_last": True, "compile": True})
    return [Way(loop=loop, **form) for form in forms for loop in ("resdeploy", "torch")]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Workload of all ways: the network, its images, and their number."""

    arch: str
    side: int
    batch_size: int
    num_steps: int
    device: str

    @property
    def num_images(self) -> int:
        """Of an epoch."""
        return self.batch_size * self.num_steps


def measure_ways(
    setting: Setting, ways: list[Way], *, num_epochs: int, say: Callable[[str], None]
) -> list[WaySpeed]:
    """Time every way in turn; one that fails is left out with its reason.

    The first epoch of each is its warm-up.
    """
    with ExitStack() as stack:
        return _measure(setting, ways, num_epochs=num_epochs, say=say, stack=stack)


def _measure(
    setting: Setting,
    ways: list[Way],
    *,
    num_epochs: int,
    say: Callable[[str], None],
    stack: ExitStack,
) -> list[WaySpeed]:
    epochs: dict[Way, Callable[[], float]] = {}
    found = {way: WaySpeed(way=way) for way in ways}
    images, labels = _images(setting)
    for way in ways:
        try:
            epochs[way] = (
                stack.enter_context(_own_epoch(setting, way, images, labels, _folder(stack)))
                if way.loop == "resdeploy"
                else _plain_epoch(setting, way, images, labels)
            )
            warmup_s = (epochs[way](),)
            found[way] = dataclasses.replace(found[way], warmup_s=warmup_s)
            say(f"{way.title}: ready after {warmup_s[0]:.1f} s")
        except (ReportedError, RuntimeError, AssertionError) as error:
            epochs.pop(way, None)
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            found[way] = dataclasses.replace(found[way], failure=what)
            say(f"{way.title}: {what}")
    for number in range(num_epochs):
        order = list(epochs) if number % 2 == 0 else list(epochs)[::-1]
        for way in order:
            times = (*found[way].epochs_s, epochs[way]())
            found[way] = dataclasses.replace(found[way], epochs_s=times)
            say(f"{way.title}: {setting.num_images / times[-1]:.1f} images/s")
    return [found[way] for way in ways]


def _images(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (setting.num_images, 3, setting.side, setting.side)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    return images, rng.integers(0, NUM_CLASSES, setting.num_images)


def _folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="resdeploy-speed-")))


class _EnoughError(Exception):
    """Ends a training run that has been timed."""


@contextmanager
def _own_epoch(
    setting: Setting, way: Way, images: np.ndarray, labels: np.ndarray, folder: Path
) -> Iterator[Callable[[], float]]:
    """Give what trains one epoch as `resdeploy train` does, and returns its seconds.

    Its epochs are those of one run of several, whose process waits between them: what is timed is
    the steps alone, without the test samples and the checkpoint.
    """
    from resdeploy.training import loop as product

    data = folder / "data.npz"
    np.savez(data, train_x=images, train_y=labels, test_x=images[:2], test_y=labels[:2])
    recipe = Recipe(
        name="speed",
        model=ModelSpec(arch=setting.arch, num_classes=NUM_CLASSES),
        data=DataSpec(name="npz", path=str(data)),
        preprocess=Preprocess(
            input_shape=(3, setting.side, setting.side),
            divisor=255,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        train=TrainSpec(
            epochs=10_000,
            batch_size=setting.batch_size,
            learning_rate=1e-3,
            warmup_epochs=0,
            precision="bfloat16" if way.precision == "bfloat16" else "float32",
            channels_last=way.channels_last,
            compile=way.compile,
        ),
    )
    asked, answered = threading.Semaphore(0), threading.Semaphore(0)
    state: dict[str, Any] = {}

    def on_batch(step: int, num_steps: int, loss: float, rate: float) -> None:
        # The loss is a number here, so that the device has done the step.
        if step % setting.num_steps == 0:
            state["seconds"] = time.perf_counter() - state["start"]

    def on_epoch(metrics: object) -> None:
        # Only now: the test samples and the checkpoint are not to run beside another's steps.
        answered.release()
        wait()

    def wait() -> None:
        asked.acquire()
        if "is over" in state:
            raise _EnoughError
        state["start"] = time.perf_counter()

    def run() -> None:
        try:
            wait()
            product.train(
                recipe,
                folder / "run",
                device=setting.device,
                on_batch=on_batch,
                on_epoch=on_epoch,
            )
        except _EnoughError:
            pass
        except Exception as error:
            state["error"] = error
            answered.release()

    def epoch() -> float:
        asked.release()
        answered.acquire()
        if "error" in state:
            raise state["error"]
        return float(state["seconds"])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield epoch
    finally:
        state["is over"] = True
        asked.release()
        thread.join()


def _plain_epoch(
    setting: Setting, way: Way, images: np.ndarray, labels: np.ndarray
) -> Callable[[], float]:
    """Return a call that trains one epoch as torch's tutorials do, and returns its seconds."""
    import torch
    import torch.nn.functional as F

    from resdeploy.networks import build_network

    device = torch.device(setting.device)
    network: Any = build_network(ModelSpec(arch=setting.arch, num_classes=NUM_CLASSES)).to(device)
    x = torch.from_numpy(images).float().div_(127.5).sub_(1).to(device)
    y = torch.from_numpy(labels).to(device)
    if way.channels_last:
        network = network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    network.train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    forward = torch.compile(network) if way.compile else network
    is_half = way.precision == "bfloat16"

    def epoch() -> float:
        start = time.perf_counter()
        for step in range(setting.num_steps):
            part = slice(step * setting.batch_size, (step + 1) * setting.batch_size)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half):
                loss = F.cross_entropy(forward(x[part]), y[part])
            loss.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return epoch


def macs_of(setting: Setting) -> int:
    """Return the multiplications with addition of one forward pass of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from resdeploy.networks import build_network

    network = build_network(ModelSpec(arch=setting.arch, num_classes=NUM_CLASSES)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, setting.side, setting.side))
    return int(counter.get_total_flops() // 2)


def _ratios(speeds: list[WaySpeed]) -> dict[str, tuple[float, ...]]:
    by_way = {speed.way: speed for speed in speeds}
    found = {}
    for way, ours in by_way.items():
        theirs = by_way.get(dataclasses.replace(way, loop="torch"))
        if (
            way.loop == "torch"
            or theirs is None
            or min(len(ours.epochs_s), len(theirs.epochs_s)) < 2
        ):
            continue
        pairs = zip(ours.epochs_s, theirs.epochs_s, strict=True)
        logs = [math.log(mine / other) for mine, other in pairs]
        ratio = mean_ratio(logs)
        found[way.title] = (ratio.ratio, ratio.low, ratio.high)
    return found


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--arch", default="resnet50", show_default=True)
@click.option("--side", default=224, show_default=True, type=click.IntRange(min=8))
@click.option("--batch", default=128, show_default=True, type=click.IntRange(min=2))
@click.option("--steps", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--epochs", default=6, show_default=True, type=click.IntRange(min=1))
@click.option("--compile/--no-compile", "compiles", default=True, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(
    device: str,
    arch: str,
    side: int,
    batch: int,
    steps: int,
    epochs: int,
    compiles: bool,
    json_path: Path | None,
) -> None:
    """Time the ways in turn."""
    from benchmarks.cuda.roofline import measure_ceilings

    setting = Setting(arch=arch, side=side, batch_size=batch, num_steps=steps, device=device)

    def say(line: str) -> None:
        click.echo(line, err=True)

    try:
        is_cpu = device == "cpu"
        ceilings = measure_ceilings(
            "cpu" if is_cpu else "cuda",
            matrix_size=512 if is_cpu else 8192,
            copy_bytes=(1 << 26) if is_cpu else (1 << 30),
        )
    except (RuntimeError, AssertionError) as error:
        lacking = EnvironmentLacksError(
            f"torch cannot use the device {device!r}: {str(error).partition(chr(10))[0]}",
            fix="give --device cpu with a small --side and --batch",
        )
        click.echo(lacking, err=True)
        sys.exit(lacking.exit_code)
    macs = macs_of(setting)
    speeds = []
    for speed in measure_ways(setting, ways_on(compiles=compiles), num_epochs=epochs, say=say):
        if speed.epochs_s:
            rate = setting.num_images / statistics.median(speed.epochs_s)
            # torch convolves float32 in TF32 on a GPU that has it, in both loops.
            names = ("tf32", "float32") if speed.way.precision == "float32" else ("bfloat16",)
            peak = next((ceilings.macs_per_s[n] for n in names if n in ceilings.macs_per_s), None)
            share = None if peak is None else _PASSES * macs * rate / peak
            speed = dataclasses.replace(speed, images_per_s=rate, roofline_share=share)
        speeds.append(speed)
    report = SpeedReport(
        arch=arch,
        side=side,
        batch_size=batch,
        num_steps=steps,
        device=ceilings.device,
        macs_per_image=macs,
        speeds=tuple(speeds),
        ratios=_ratios(speeds),
        environment=read_environment(),
    )
    for speed in speeds:
        if speed.images_per_s is not None:
            share = (
                "" if speed.roofline_share is None else f"{speed.roofline_share:7.1%} of roofline"
            )
            click.echo(f"{speed.way.title:50} {speed.images_per_s:10.1f} images/s {share}")
        else:
            click.echo(f"{speed.way.title:50} {speed.failure}")
    for title, (ratio, low, high) in report.ratios.items():
        click.echo(f"{title}: {ratio:.3f} [{low:.3f}, {high:.3f}] of the time of torch's loop")
    if json_path is not None:
        with atomic_write(json_path, force=True) as temporary:
            temporary.write_text(json.dumps(to_json(report), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
