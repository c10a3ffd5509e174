"""What every test shares: two threads, strict numpy, and where the real data lies."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_configure() -> None:
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _strict_numpy() -> Iterator[None]:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        yield


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data: a trained ResNet-20 and CIFAR-10 images; absent for most users."""
    if not SHARED_DATA.is_dir():
        pytest.skip(
            "needs the real CIFAR-10 sample, which lies beside the checkout where it exists"
        )
    return SHARED_DATA
