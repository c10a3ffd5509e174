"""Golden references: exact arithmetic, an honest yardstick, and real samples."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from resdeploy.errors import ResdeployError
from resdeploy.host.build import SourceModel
from resdeploy.host.golden import golden_for, make_golden, run_module, synthetic_inputs
from resdeploy.schema import CheckpointInfo, DataSpec, ModelSpec, Preprocess


def linear(features=5, outputs=3):
    torch.manual_seed(0)
    return nn.Linear(features, outputs).eval()


def source_of(module, shape, preprocess=None):
    model = ModelSpec(arch="residual_mlp", num_classes=10)
    info = CheckpointInfo(model=model, preprocess=preprocess)
    return SourceModel(module=module, input_shape=shape, description="a test", info=info)


def test_the_reference_is_computed_in_float64():
    module, x = linear(), synthetic_inputs((5,), num_inputs=20)
    golden = make_golden(module, x, source="s", inputs_description="i")
    exact = x.astype(np.float64) @ module.weight.detach().double().numpy().T
    exact += module.bias.detach().double().numpy()
    np.testing.assert_allclose(golden.reference, exact, rtol=1e-14)
    assert module.weight.dtype is torch.float32


def test_a_pruned_module_has_a_reference_too():
    """Its weight is computed from another, which copy.deepcopy refuses before the first run."""
    module = prune.l1_unstructured(linear(), "weight", amount=0.5).eval()
    x = synthetic_inputs((5,), num_inputs=4)
    golden = make_golden(module, x, source="s", inputs_description="i")
    assert np.isfinite(golden.reference).all()


def test_the_noise_is_the_error_of_float32():
    module, x = linear(), synthetic_inputs((5,), num_inputs=20)
    golden = make_golden(module, x, source="s", inputs_description="i")
    own = run_module(module, x, dtype=torch.float32)
    np.testing.assert_allclose(golden.noise_l2, np.linalg.norm(own - golden.reference, axis=1))
    assert 0 < golden.noise_l2.max() < 1e-5


@pytest.mark.parametrize(("scale", "precision"), [(1e39, "float32"), (1e308, "float64")])
def test_refuses_a_model_that_overflows(scale, precision):
    class Large(nn.Module):
        def forward(self, x):
            return x * 16 * scale

    with pytest.raises(ResdeployError, match=f"not finite in {precision}"):
        make_golden(
            Large(), synthetic_inputs((5,), num_inputs=4), source="s", inputs_description="i"
        )


def test_synthetic_inputs_are_seeded():
    a, b = (synthetic_inputs((2, 3), num_inputs=4) for _ in range(2))
    assert a.tobytes() == b.tobytes()
    assert a.tobytes() != synthetic_inputs((2, 3), num_inputs=4, seed=1).tobytes()
    assert a.dtype == np.float32


def test_several_outputs_are_laid_side_by_side():
    class Two(nn.Module):
        def forward(self, x):
            return x.sum(1, keepdim=True), x.reshape(-1, 2, 2)

    outputs = run_module(Two(), synthetic_inputs((4,), num_inputs=9), dtype=torch.float64)
    assert outputs.shape == (9, 5)


def test_real_samples_come_with_labels_and_preprocessing():
    preprocess = Preprocess(input_shape=(1, 8, 8), divisor=255.0, color="gray")
    source = source_of(nn.Flatten(), (1, 8, 8), preprocess)
    golden = golden_for(source, data=DataSpec(name="digits"), num_inputs=30)
    assert golden.inputs.shape == (30, 1, 8, 8)
    assert 0 <= golden.inputs.min() < golden.inputs.max() == 1
    assert golden.labels.shape == (30,)
    assert golden.info.inputs == "the first 30 held-out samples of digits"


def test_all_held_out_samples_are_the_default():
    preprocess = Preprocess(input_shape=(1, 8, 8), divisor=255.0, color="gray")
    source = source_of(nn.Flatten(), (1, 8, 8), preprocess)
    info = golden_for(source, data=DataSpec(name="digits")).info
    assert (info.num_inputs, info.inputs) == (359, "all 359 held-out samples of digits")


def test_refuses_data_without_preprocessing():
    with pytest.raises(ResdeployError, match="become inputs of this model is not known"):
        golden_for(source_of(nn.Flatten(), (1, 8, 8)), data=DataSpec(name="digits"))


def test_refuses_data_of_another_shape():
    preprocess = Preprocess(input_shape=(1, 8, 8), color="gray")
    with pytest.raises(ResdeployError, match="samples of shape"):
        golden_for(source_of(nn.Flatten(), (3, 8, 8), preprocess), data=DataSpec(name="digits"))


def test_the_description_names_no_folder(tmp_path):
    np.savez(tmp_path / "some.npz", x=np.zeros((2, 5), np.float32))
    source = source_of(linear(), (5,), Preprocess(input_shape=(5,), color="none"))
    golden = golden_for(source, data=DataSpec(name="npz", path=str(tmp_path / "some.npz")))
    assert golden.info.inputs == "all 2 held-out samples of npz (some.npz)"
