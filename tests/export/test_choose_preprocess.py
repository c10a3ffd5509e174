"""Preprocessing found by the accuracy of a network on pictures of its classes."""

import numpy as np
import pytest
import torch
from PIL import Image

from resdeploy.errors import ResdeployError
from resdeploy.export.choose_preprocess import choose_preprocess
from resdeploy.export.source import SourceModel


class Brightness(torch.nn.Module):
    """Tells pictures brighter than a limit from others, by the mean of its input."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([self.limit - mean, mean - self.limit], 1)


@pytest.fixture
def pictures(tmp_path):
    files = []
    for level in (20, 60, 100, 140, 180, 220):
        files.append(tmp_path / f"{level}.png")
        Image.new("RGB", (40, 40), (level, level, level)).save(files[-1])
    return files, np.array([0, 0, 0, 1, 1, 1])


# Where the limit between 100 and 140 of 255 lies, by each preprocessing.
@pytest.mark.parametrize(("name", "limit"), [("imagenet", 0.1), ("half", -0.06), ("unit", 0.47)])
def test_the_scale_that_a_network_was_trained_in_is_found(pictures, name, limit):
    source = SourceModel(
        module=Brightness(limit), input_shape=(3, 32, 32), description="", info=None
    )
    chosen = choose_preprocess(source, *pictures)
    assert chosen.num_right[name] == 6
    assert chosen.num_right[chosen.name] == 6
    assert chosen.preprocess.input_shape == (3, 32, 32)


def test_a_network_of_vectors_is_refused(pictures):
    source = SourceModel(module=Brightness(0), input_shape=(12,), description="", info=None)
    with pytest.raises(ResdeployError, match="no picture"):
        choose_preprocess(source, *pictures)
