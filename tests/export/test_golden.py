"""Golden references: exact arithmetic, an honest yardstick, and real samples."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from resdeploy.data.input_kinds import FLOATS
from resdeploy.errors import ResdeployError
from resdeploy.export import precision_noise
from resdeploy.export.golden import golden_for, make_golden, run_module
from resdeploy.export.source import SourceModel
from resdeploy.networks import build_network
from resdeploy.schema.recipes import CheckpointInfo, DataSpec, ModelSpec, Preprocess
from resdeploy.verify.end_to_end import NOISE_RATIO_LIMIT, judge_end_to_end
from resdeploy.verify.golden_file import load_golden, save_golden


def linear(features=5, outputs=3):
    torch.manual_seed(0)
    return nn.Linear(features, outputs).eval()


def source_of(module, shape, preprocess=None):
    model = ModelSpec(arch="residual_mlp", num_classes=10)
    info = CheckpointInfo(model=model, preprocess=preprocess)
    return SourceModel(module=module, input_shape=shape, description="a test", info=info)


def test_the_reference_is_computed_in_float64():
    module, x = linear(), FLOATS.draw((20, 5))
    golden = make_golden(module, x, source="s", inputs_description="i")
    exact = x.astype(np.float64) @ module.weight.detach().double().numpy().T
    exact += module.bias.detach().double().numpy()
    np.testing.assert_allclose(golden.reference, exact, rtol=1e-14)
    assert module.weight.dtype is torch.float32


def test_a_pruned_module_has_a_reference_too():
    """Its weight is computed from another, which copy.deepcopy refuses before the first run."""
    module = prune.l1_unstructured(linear(), "weight", amount=0.5).eval()
    x = FLOATS.draw((4, 5))
    golden = make_golden(module, x, source="s", inputs_description="i")
    assert np.isfinite(golden.reference).all()


def test_the_noise_is_the_error_of_float32():
    module, x = linear(), FLOATS.draw((20, 5))
    golden = make_golden(module, x, source="s", inputs_description="i")
    own = run_module(module, x, dtype=torch.float32)
    np.testing.assert_allclose(golden.noise_l2, np.linalg.norm(own - golden.reference, axis=1))
    assert 0 < golden.noise_l2.max() < 1e-5


@pytest.mark.parametrize(
    ("scale", "precision"), [(1e39, "float32"), (1e308, "float32"), (np.inf, "float64")]
)
def test_refuses_a_model_that_overflows(scale, precision):
    class Large(nn.Module):
        def forward(self, x):
            return x * 16 * scale

    with pytest.raises(ResdeployError, match=f"not finite in {precision}"):
        make_golden(Large(), FLOATS.draw((4, 5)), source="s", inputs_description="i")


def test_several_outputs_are_laid_side_by_side():
    class Two(nn.Module):
        def forward(self, x):
            return x.sum(1, keepdim=True), x.reshape(-1, 2, 2)

    outputs = run_module(Two(), FLOATS.draw((9, 4)), dtype=torch.float64)
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


# --- the yardsticks that travel ------------------------------------------------------------------


def small_network():
    torch.manual_seed(0)
    module = build_network(ModelSpec(arch="resnet8_tiny", num_classes=10)).train()
    with torch.no_grad():
        module(torch.randn(64, 3, 8, 8))
    return module.eval()


def test_sigma_and_the_noise_of_each_precision_come_with_it():
    module, x = small_network(), FLOATS.draw((12, 3, 8, 8))
    golden = make_golden(module, x, source="s", inputs_description="i")
    assert golden.sigma.shape == golden.reference.shape
    assert (golden.info.sigma_missing, golden.info.weight_noise_l2) == (None, None)
    noise = golden.info.precision_noise
    assert noise.num_inputs == 8
    level = np.linalg.norm(golden.noise_l2[:8]) / np.linalg.norm(golden.reference[:8])
    assert noise.float32 == pytest.approx(level)
    # 13 bits fewer, 8192 times the rounding, is what sums of float32 leave of it.
    assert 300 < noise.tf32 / noise.float32 < 8192
    assert 0.5 < noise.float16 / noise.tf32 < 4
    # 3 bits fewer than float16
    assert noise.bfloat16 / noise.float16 == pytest.approx(8, rel=0.5)
    assert noise.int8 > noise.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_precision_that_is_really_computed_in_is_recognised(dtype):
    module, x = small_network(), FLOATS.draw((64, 3, 8, 8))
    golden = make_golden(module, x, source="s", inputs_description="i")
    real = copy.deepcopy(module).to(getattr(torch, dtype))
    with torch.no_grad():
        outputs = real(torch.from_numpy(x).to(getattr(torch, dtype))).float().numpy()
    verdict = judge_end_to_end(outputs, golden, precision=dtype)
    assert verdict.precision.found == dtype
    # Measured: 1.3 and 1.4 for a trained network.
    assert 0.4 < verdict.precision.ratio < 2.5
    assert verdict.passed
    assert not judge_end_to_end(outputs, golden).passed


def test_tf32_keeps_ten_bits_of_mantissa_rounded_to_even():
    x = torch.tensor([1 + 2.0**-10, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -(1 + 1.01 * 2.0**-11), 0.0])
    expected = [1 + 2.0**-10, 1.0, 1 + 2.0**-9, -(1 + 2.0**-10), 0.0]
    assert precision_noise._to_tf32(x).tolist() == expected


def test_what_overflows_in_float16_has_no_level_there():
    module, x = linear(), 1e5 + FLOATS.draw((4, 5))
    noise = make_golden(module, x, source="s", inputs_description="i").info.precision_noise
    assert noise.float16 is None
    assert noise.bfloat16 is not None


def test_the_noise_of_weights_is_that_of_rounded_weights():
    """y = w x + b over inputs that are all alike: sqrt of sum u^2/3 (w^2 x^2 + b^2)."""
    module = linear(outputs=200)
    x = np.ones((128, 5), np.float32)
    info = make_golden(module, x, source="s", inputs_description="i").info
    squares = sum(float(p.detach().double().square().sum()) for p in module.parameters())
    assert info.weight_noise_l2 == pytest.approx(2.0**-24 * (squares / 3) ** 0.5, rel=0.1)


def test_why_there_is_no_sigma_is_recorded():
    class Cumulative(nn.Module):
        def forward(self, x):
            return x.cumsum(1)

    x = FLOATS.draw((4, 5))
    golden = make_golden(Cumulative(), x, source="s", inputs_description="i")
    assert golden.sigma is None
    assert "variance of cumsum is not known" in golden.info.sigma_missing
    assert golden.info.precision_noise is not None


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    x = FLOATS.draw((130, 3, 8, 8))
    for name in ("a", "b"):
        golden = make_golden(small_network(), x, source="s", inputs_description="i")
        save_golden(tmp_path / name, golden)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = load_golden(tmp_path / "a")
    assert read.info == golden.info
    assert read.sigma.tobytes() == golden.sigma.tobytes()


@pytest.mark.parametrize(("eps", "passes"), [(1e-5, True), (1.1e-5, False), (0.9e-5, False)])
def test_an_epsilon_off_in_one_layer_is_systematic(eps, passes):
    """A tenth of epsilon, 5e-7 of the scale, drowns in the noise: R is 2.6, z's rms 0.67."""
    module, x = small_network(), FLOATS.draw((256, 3, 8, 8))
    golden = make_golden(module, x, source="s", inputs_description="i")
    changed = copy.deepcopy(module)
    next(m for m in changed.modules() if isinstance(m, nn.BatchNorm2d)).eps = eps
    verdict = judge_end_to_end(run_module(changed, x, dtype=torch.float32), golden)
    assert verdict.noise_ratio < NOISE_RATIO_LIMIT
    assert verdict.z_rms < 1
    assert verdict.passed is passes
    assert all("the same for every input: T = " in reason for reason in verdict.reasons)
