"""ONNX files of other tools, through every command that takes one.

A small network of each form runs in the default suite; the whole chain on all of them is slow.
"""

import numpy as np
import onnx
import pytest
from foreign_onnx import keras_resnet, mxnet_resnet, zoo_resnet
from onnx import numpy_helper

import resdeploy
from resdeploy.errors import ResdeployError
from resdeploy.graph.onnx_file import read_onnx
from resdeploy.schema.bundles import CheckReport, Manifest, PredictReport
from resdeploy.schema.codec import load_json
from resdeploy.schema.files import SourceSpec
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.quants import QuantReport

TINY = {"widths": (4, 8), "side": 16}
# Each network with the number of its BatchNorms, as it counts a scale and a shift.
NETWORKS = {
    "zoo": (lambda: zoo_resnet(**TINY), 6),
    "zoo, softmax": (lambda: zoo_resnet(probabilities=True, **TINY), 6),
    "zoo, opset 9 and any batch": (lambda: zoo_resnet(opset=9, ir_version=4, batch="N", **TINY), 6),
    "keras, mul and add": (lambda: keras_resnet(**TINY), 6),
    "keras, batchnorm": (lambda: keras_resnet(written_out=False, **TINY), 6),
    "keras, opset 9": (lambda: keras_resnet(opset=9, **TINY), 6),
    "keras, one transpose": (lambda: keras_resnet(transposed_each=False, **TINY), 6),
    "mxnet": (lambda: mxnet_resnet(scale=False, **TINY), 7),
    "mxnet, scale": (lambda: mxnet_resnet(**TINY), 13),
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(model: onnx.ModelProto, name: str = "model.onnx") -> str:
    onnx.save(model, name)
    return name


def samples(model: onnx.ModelProto, count: int = 64) -> str:
    """Write labelled network inputs for a model, and return their file."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    random = np.random.default_rng(0)
    x = random.normal(size=(count, *shape)).astype(np.float32)
    np.savez("x.npz", x=x, y=random.integers(0, 10, count))
    return "x.npz"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_tool_folds_completely(name, work):
    make, num_norms = NETWORKS[name]
    report = resdeploy.fold_batchnorm(save(make()), out="folded.onnx")
    assert (len(report.folded), report.refused) == (num_norms, ())
    assert report.comparison.passed
    kinds = {node.op_type for node in onnx.load("folded.onnx").graph.node}
    assert "BatchNormalization" not in kinds
    assert "Mul" not in kinds
    onnx.checker.check_model(onnx.load("folded.onnx"), full_check=True)


@pytest.mark.parametrize("name", ["zoo", "keras, opset 9", "mxnet, scale"])
def test_a_folded_network_is_proved_against_its_file(name, work):
    save(NETWORKS[name][0]())
    resdeploy.fold_batchnorm("model.onnx", out="folded.onnx")
    report = resdeploy.verify(
        "folded.onnx", reference="model.onnx", num_inputs=2, conformance=False
    )
    assert report.verdict == "PROVED", (report.reasons, report.unproved)


def test_weights_among_the_inputs_are_taken_as_constants_and_said_to_be(run, work):
    model = zoo_resnet(**TINY)
    result = run("fold-bn", save(model), "-o", "folded.onnx")
    assert result.exit_code == 0, result.output
    count = len(model.graph.initializer)
    assert f"{count} weights that the file lists as inputs too: taken as constants" in result.stdout
    folded = onnx.load("folded.onnx")
    assert [value.name for value in folded.graph.input] == ["data"]
    assert folded.ir_version >= 4
    report = run("fold-bn", "model.onnx", "--dry-run", "--json")
    assert load_json(FoldReport, report.stdout, where="stdout").num_frozen == count


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_listed_weights_are_constants_in_every_version_of_the_form(ir_version, work):
    file = read_onnx(work / save(zoo_resnet(ir_version=ir_version, **TINY)))
    assert len(file.frozen) == len(file.model.graph.initializer)
    assert file.model.ir_version == max(4, ir_version)


def test_a_file_without_batchnorms_keeps_its_bytes(work):
    model = zoo_resnet(**TINY)
    resdeploy.fold_batchnorm(save(model), out="folded.onnx")
    resdeploy.fold_batchnorm("folded.onnx", out="again.onnx")
    assert (work / "again.onnx").read_bytes() == (work / "folded.onnx").read_bytes()


def test_two_initializers_of_one_name_are_refused(work):
    model = zoo_resnet(**TINY)
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(ResdeployError, match="initializers are called 'conv0_weight'"):
        resdeploy.fold_batchnorm(save(model))


def test_the_shift_of_the_datas_batchnorm_stays_before_zero_padding(work):
    report = resdeploy.fold_batchnorm(save(mxnet_resnet(scale=False, **TINY)), out="folded.onnx")
    (site,) = (site for site in report.folded if site.keeps_shift)
    assert (site.site, site.producer) == ("bn_data", "conv0")
    first = onnx.load("folded.onnx").graph.node[0]
    assert first.op_type == "Add"


def test_a_batchnorm_of_the_data_with_a_scale_of_zero_is_refused(work):
    model = mxnet_resnet(scale=False, **TINY)
    (gamma,) = (t for t in model.graph.initializer if t.name == "bn_data_gamma")
    gamma.CopyFrom(numpy_helper.from_array(np.array([1, 0, 1], np.float32), gamma.name))
    report = resdeploy.fold_batchnorm(save(model))
    assert [site.site for site in report.refused] == ["bn_data"]


def test_an_onnx_file_is_bundled_with_itself_as_the_reference(run, work):
    result = run("bundle", save(zoo_resnet(**TINY)), "-o", "packed", "--num-inputs", 2, "--json")
    assert result.exit_code == 0, result.output
    manifest = load_json(Manifest, result.stdout, where="stdout")
    assert manifest.is_own_reference
    assert manifest.proof.unproved == ()
    assert "was\nnot shown" in (work / "packed" / "README.md").read_text()
    checked = run("check", "packed", "--json")
    assert checked.exit_code == 0, checked.output
    report = load_json(CheckReport, checked.stdout, where="stdout")
    assert report.verification.verdict == "PROVED"


def test_an_onnx_file_is_held_to_the_reference_that_is_given(work):
    save(keras_resnet(**TINY))
    resdeploy.fold_batchnorm("model.onnx", out="folded.onnx")
    manifest = resdeploy.bundle("folded.onnx", "packed", reference="model.onnx", num_inputs=2)
    assert not manifest.is_own_reference
    assert manifest.proof.unproved == ()
    other = keras_resnet(**TINY)
    weight = other.graph.initializer[-1]
    changed = numpy_helper.to_array(weight) + np.float32(0.01) * np.arange(10, dtype=np.float32)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    with pytest.raises(ResdeployError, match="does not compute what its reference"):
        resdeploy.bundle(save(other, "other.onnx"), "p", reference="model.onnx", num_inputs=2)


@pytest.mark.parametrize("option", [{"opset": 12}, {"batch": 1}, {"layout": "NHWC"}])
def test_a_bundle_of_an_onnx_file_takes_no_option_of_an_export(option, work):
    with pytest.raises(ResdeployError, match="packed as it is"):
        resdeploy.bundle(save(zoo_resnet(**TINY)), "packed", **option)


@pytest.mark.parametrize("option", [{"labels": "imagenet"}, {"preprocess_as": "unit"}])
def test_what_a_bundle_of_an_onnx_file_would_not_use_is_refused(option, work):
    source = SourceSpec(path=save(zoo_resnet(**TINY)), **option)
    with pytest.raises(ResdeployError, match="from a recipe") as caught:
        resdeploy.bundle(source, "packed")
    assert "--recipe" in caught.value.fix


def test_a_recipe_may_hold_preprocessing_alone(work):
    (work / "recipe.toml").write_text("[preprocess]\ninput_shape = [3, 16, 16]\ndivisor = 255\n")
    source = SourceSpec(path=save(zoo_resnet(**TINY)), recipe="recipe.toml")
    manifest = resdeploy.bundle(source, "packed", num_inputs=2)
    assert (manifest.preprocess.divisor, manifest.num_labels) == (255, 0)


@pytest.mark.parametrize(
    "command", ["bench", "quantize", "verify", "predict", "check", "tune", "evaluate"]
)
def test_a_checkpoint_is_answered_with_the_export_that_it_needs(command, run, work):
    (work / "weights.pth").write_bytes(b"weights")
    options = {
        "predict": ["x.npy"],
        "evaluate": ["--data", "npz:x.npz"],
        "quantize": ["-o", "q.onnx", "--calibration", "npz:x.npz"],
        "verify": ["--reference", "weights.pth"],
    }
    result = run(command, "weights.pth", *options.get(command, []))
    assert result.exit_code == 2, result.output
    assert "resdeploy export weights.pth" in result.stderr.replace("\n", " ")


def test_predictions_of_a_file_are_those_of_its_bundle(run, work):
    model = keras_resnet(**TINY)
    save(model)
    np.save("x.npy", np.load(samples(model, 2))["x"])
    resdeploy.bundle("model.onnx", "packed", num_inputs=2)
    found = [
        load_json(PredictReport, run("predict", source, "x.npy", "--json").stdout, where="stdout")
        for source in ("model.onnx", "packed")
    ]
    assert found[0].predictions == found[1].predictions
    assert len(found[0].predictions) == 2


def test_the_model_of_a_bundle_is_taken_where_a_file_is(work):
    save(keras_resnet(**TINY))
    resdeploy.bundle("model.onnx", "packed.zip", num_inputs=2)
    report = resdeploy.verify("packed.zip", reference="model.onnx", num_inputs=2, conformance=False)
    assert report.verdict == "PROVED"


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_tool_goes_the_whole_way(name, run, work):
    model = NETWORKS[name][0]()
    save(model)
    data = f"npz:{samples(model)}"
    assert run("fold-bn", "model.onnx", "-o", "folded.onnx").exit_code == 0
    quantized = run(
        *("quantize", "folded.onnx", "-o", "int8.onnx", "--calibration", data),
        *("--max-flips", 1, "--json"),
    )
    assert quantized.exit_code == 0, quantized.output
    assert load_json(QuantReport, quantized.stdout, where="stdout").passed
    for command in (
        ("verify", "folded.onnx", "--reference", "model.onnx", "--num-inputs", 4),
        ("bundle", "model.onnx", "-o", "packed", "--num-inputs", 4),
        ("check", "model.onnx"),
        ("predict", "packed", "x.npz"),
        ("evaluate", "model.onnx", "--data", data),
        ("bench", "model.onnx", "--runs", 20),
        ("tune", "model.onnx", "--runs", 20, "--threads", 1, "--provider", "cpu"),
        ("selftest", "model.onnx", "--num-inputs", 4),
    ):
        result = run(*command)
        assert result.exit_code == 0, (command, result.output)
