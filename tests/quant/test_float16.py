import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto
from small_networks import inputs, small_resnet

from resdeploy.quant.float16 import convert, quantize_float16, simulate
from resdeploy.quant.onnx_graph import Constants
from resdeploy.quant.prepare import prepare
from resdeploy.quant.runtime import Runner
from resdeploy.quant.samples import Samples
from resdeploy.schema.quants import QuantSpec

SAMPLES = Samples.of_array(inputs(80))


def quantised(model=None, precision="float16", **options):
    return quantize_float16(
        model or small_resnet(),
        SAMPLES,
        QuantSpec(**{"precision": precision, "max_flips": 0.2, **options}),
    )


def test_every_weight_is_float16_and_inputs_and_outputs_are_kept():
    model, report = quantised()
    onnx.checker.check_model(model, full_check=True)
    types = {t.data_type for t in model.graph.initializer}
    assert TensorProto.FLOAT not in types
    ends = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert ends == [TensorProto.FLOAT, TensorProto.FLOAT]
    assert report.passed
    assert report.kept_float == ()


def test_inputs_and_outputs_are_lowered_where_asked_for():
    model, _ = quantised(keep_io=False)
    onnx.checker.check_model(model, full_check=True)
    ends = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert ends == [TensorProto.FLOAT16, TensorProto.FLOAT16]
    assert "Cast" not in [node.op_type for node in model.graph.node]
    found = Runner(model, optimize=False).run(inputs(4).astype(np.float16))["logits"]
    assert found.dtype == np.float16


def test_bfloat16_is_converted_at_an_operator_set_whose_conv_takes_it():
    model, report = quantised(precision="bfloat16")
    onnx.checker.check_model(model, full_check=True)
    assert {t.data_type for t in model.graph.initializer} <= {
        TensorProto.BFLOAT16,
        TensorProto.INT64,
    }
    # 8 bits of mantissa against 11.
    _, half = quantised()
    assert 4 < report.quality.error / half.quality.error < 16


def test_the_simulation_rounds_weights_and_every_tensor():
    model, x = prepare(small_resnet()), inputs(4)
    simulated = simulate(model, "bfloat16")
    constants, exact = Constants(simulated), Constants(model)
    weight = constants["stem.weight.bfloat16"]
    assert np.array_equal(
        weight, exact["stem.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    )
    found = Runner(simulated, optimize=False).run_rows(x).astype(np.float32)
    assert np.array_equal(found, found.astype(ml_dtypes.bfloat16).astype(np.float32))
    reference = Runner(model, optimize=False).run_rows(x)
    error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    assert 5e-4 < error < 5e-2


def test_it_is_not_judged_on_a_provider_that_computes_float32():
    _, report = quantised()
    assert "simulated rounding" in report.judged_on
    assert report.quality.error > 1e-5  # what the CPU would show is less: it does not round


def test_a_layer_that_overflows_stays_in_float32_with_what_it_reaches():
    model = small_resnet()
    constants = Constants(model)
    # The block's first convolution is scaled up beyond 65504, its second one down again.
    for name, factor in (("conv1.weight", 1e6), ("conv1.bias", 1e6), ("conv2.weight", 1e-6)):
        constants[f"block1.{name}"] = constants[f"block1.{name}"] * np.float32(factor)
    lowered, report = quantised(model)
    names = {layer.node for layer in report.kept_float}
    assert names == {"block1.conv1/Conv", "block1.conv1/Relu", "block1.conv2/Conv"}
    assert all("65504" in k.reason.replace("6.55e+04", "65504") for k in report.kept_float)
    assert report.passed
    onnx.checker.check_model(lowered, full_check=True)
    x = inputs(8)
    found = Runner(lowered, optimize=False).run_rows(x)
    reference = Runner(model, optimize=False).run_rows(x)
    assert np.linalg.norm(found - reference) < 0.01 * np.linalg.norm(reference)
    assert report.trials[0].quality.error == np.inf
    assert not report.trials[0].kept


def test_layers_stay_in_float32_until_the_budget_holds():
    _, free = quantised(precision="bfloat16")
    limit = 0.8 * free.quality.error
    model, report = quantised(precision="bfloat16", max_error=limit)
    assert report.kept_float
    assert report.quality.error <= limit
    onnx.checker.check_model(model, full_check=True)


def test_casts_stand_only_where_the_precision_changes():
    model = prepare(small_resnet())
    lowered = convert(model, "float16", {"block1.conv1/Conv"}, keep_io=True)
    casts = [node for node in lowered.graph.node if node.op_type == "Cast"]
    assert len(casts) == 4  # at either end, and around the one layer
