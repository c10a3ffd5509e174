"""What every test shares: one thread, strict numpy, and where the real data lies."""

import copy
import functools
import gc
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import resdeploy  # noqa: F401 - before ONNX Runtime, whose telemetry it turns off

pytest.register_assert_rewrite("folding", "servers")

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
_NUM_TESTS = itertools.count()


def pytest_configure() -> None:
    # As in a pipe, so that no table depends on the terminal that the tests were started in.
    os.environ.pop("COLUMNS", None)
    if importlib.util.find_spec("torch") is not None:
        import torch

        # Each core has a process of its own; threads of two would spin, waiting for each other.
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    if "resdeploy.export.translate" in sys.modules:
        _keep_torchlib()


def pytest_runtest_setup(item: pytest.Item) -> None:
    # torch's exporter collects garbage in every export, through all that was ever imported: what
    # lives now is taken out of its way, half a second each time.
    if next(_NUM_TESTS) % 50 == 0:
        gc.collect()
        gc.freeze()
    for provider, why_not in (("cuda", why_no_cuda), ("openvino", why_no_openvino)):
        if item.get_closest_marker(provider) is not None and (reason := why_not()) is not None:
            pytest.skip(reason)


def _keep_torchlib() -> None:
    """Let torch's exporter compile its table of translations once: a second in every export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    compiled = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(**opset: int) -> ONNXRegistry:
        registry = copy.copy(compiled(**opset))
        registry.functions = {name: [*found] for name, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)


def why_no_cuda() -> str | None:
    """Why no CUDA session starts here; None if one does."""
    return _why_no_session("cuda")


def why_no_openvino() -> str | None:
    """Why no OpenVINO session starts here; None if one does."""
    return _why_no_session("openvino")


@functools.cache
def _why_no_session(provider: str) -> str | None:
    from onnx import parser

    from resdeploy.errors import EnvironmentLacksError
    from resdeploy.schema.sessions import SessionSpec
    from resdeploy.session.session import open_session

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[1] x) => (float[1] y) { y = Relu (x) }'
    )
    try:
        open_session(model.SerializeToString(), SessionSpec(provider=provider))
    except EnvironmentLacksError as error:
        return error.what
    return None


@pytest.fixture
def no_cuda() -> None:
    """For what happens without CUDA: skips where a CUDA session really starts."""
    if why_no_cuda() is None:
        pytest.skip("CUDA starts here")


@pytest.fixture(autouse=True)
def _strict_numpy() -> Iterator[None]:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: a trained ResNet-20 and CIFAR-10 images; absent for most users."""
    if not SHARED_DATA.is_dir():
        pytest.skip(
            "needs the real CIFAR-10 sample, which lies beside the checkout where it exists"
        )
    return SHARED_DATA


@pytest.fixture
def write_flat_bundle():
    from flat_bundle import write_flat_bundle

    return write_flat_bundle


@pytest.fixture
def wrong_kernels(monkeypatch) -> None:
    """Make every layer look computed at half of its weights."""
    import dataclasses

    from resdeploy.verify import certify

    right = certify.own_layers

    def doubled(model):
        for layer in right(model):
            affine = dataclasses.replace(layer.affine, weight=2 * layer.affine.weight)
            yield dataclasses.replace(layer, affine=affine)

    monkeypatch.setattr(certify, "own_layers", lambda model: tuple(doubled(model)))
