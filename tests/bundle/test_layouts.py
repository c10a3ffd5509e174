"""A model written for Triton, as ONNX test data, and in ORT format: read back by their readers."""

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import parser

from resdeploy.bundle.layouts import (
    config_text,
    write_onnx_test_data,
    write_ort_format,
    write_triton,
)
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.verify.golden_file import Golden

TYPES = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64"),
)
IMAGE = TensorSpec(name="x", dtype="float", shape=("batch", 1, 2, 2))
SCORES = TensorSpec(name="y", dtype="float32", shape=("batch", 3))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "source.onnx"
    onnx.save(
        parser.parse_model(
            '<ir_version: 8, opset_import: ["": 18]>'
            " net (float[batch, 1, 2, 2] x) => (float[batch, 3] y) <float[4, 3] w ="
            " {1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12.}>"
            " { f = Flatten (x)  y = MatMul (f, w) }"
        ),
        path,
    )
    return path


@pytest.fixture
def golden():
    inputs = np.random.default_rng(0).normal(size=(5, 1, 2, 2)).astype(np.float32)
    weight = np.arange(1.0, 13.0).reshape(4, 3)
    return Golden(
        inputs=inputs,
        reference=inputs.reshape(5, 4).astype(np.float64) @ weight,
        noise_l2=np.full(5, 1e-6),
        labels=None,
        info=GoldenInfo(source="net", inputs="random", num_inputs=5),
    )


# --- Triton --------------------------------------------------------------------------------------


def model_config():
    """Return the message ModelConfig with the fields we use, numbered as in model_config.proto.

    The slow test in tests/test_install.py holds the text to Triton's own package.
    """
    field = descriptor_pb2.FieldDescriptorProto
    kinds = {"string": field.TYPE_STRING, "int32": field.TYPE_INT32, "int64": field.TYPE_INT64}
    file = descriptor_pb2.FileDescriptorProto(name="m.proto", package="inference", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for number, name in enumerate(TYPES):
        types.value.add(name=f"TYPE_{name}", number=number)
    for message, fields in {
        "ModelDynamicBatching": (),
        "ModelInput": (("name", 1, "string"), ("data_type", 2, "e"), ("dims", 4, "int64*")),
        "ModelOutput": (
            *(("name", 1, "string"), ("data_type", 2, "e"), ("dims", 3, "int64*")),
            ("label_filename", 4, "string"),
        ),
        "ModelConfig": (
            *(("name", 1, "string"), ("platform", 2, "string"), ("max_batch_size", 4, "int32")),
            *(("input", 5, "ModelInput*"), ("output", 6, "ModelOutput*")),
            ("dynamic_batching", 11, "ModelDynamicBatching"),
        ),
    }.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            many, kind = kind.endswith("*"), kind.rstrip("*")
            added = described.field.add(name=name, number=number)
            added.label = field.LABEL_REPEATED if many else field.LABEL_OPTIONAL
            if kind in kinds:
                added.type = kinds[kind]
            else:
                added.type = field.TYPE_ENUM if kind == "e" else field.TYPE_MESSAGE
                added.type_name = ".inference.DataType" if kind == "e" else f".inference.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parsed(text):
    return text_format.Parse(text, model_config()())


def test_a_model_of_any_batch_is_batched_by_triton():
    config = parsed(config_text("net", [IMAGE], [SCORES], has_labels=True))
    assert (config.name, config.platform) == ("net", "onnxruntime_onnx")
    assert config.max_batch_size == 32
    assert config.HasField("dynamic_batching")
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([1, 2, 2], [3])
    assert (config.input[0].data_type, config.output[0].data_type) == (11, 11)
    assert config.output[0].label_filename == "labels.txt"


def test_a_fixed_batch_is_part_of_the_shape():
    fixed = TensorSpec(name='odd "name"\\', dtype="float16", shape=(4, "length"))
    config = parsed(config_text("net", [fixed], [fixed], has_labels=False))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4, -1]
    assert config.input[0].name == 'odd "name"\\'
    assert config.output[0].label_filename == ""


def test_a_repository_takes_several_models_and_keeps_them(tmp_path, model):
    def write(name, *, force=False, labels=("a", "b", "c")):
        write_triton(
            tmp_path / "repository",
            name=name,
            model=model,
            inputs=[IMAGE],
            outputs=[SCORES],
            labels=labels,
            force=force,
        )

    write("one")
    write("two", labels=())
    assert (tmp_path / "repository/one/labels.txt").read_text() == "a\nb\nc\n"
    assert not (tmp_path / "repository/two/labels.txt").exists()
    assert (tmp_path / "repository/two/1/model.onnx").read_bytes() == model.read_bytes()
    with pytest.raises(ResdeployError, match="exists already"):
        write("one")
    write("one", force=True)
    for name in ("", "../up", "a/b", ".hidden", 'x"y'):
        with pytest.raises(ResdeployError, match="cannot be the name"):
            write(name)
    assert sorted(path.name for path in (tmp_path / "repository").iterdir()) == ["one", "two"]


def test_a_type_that_triton_has_no_name_for_is_refused():
    odd = TensorSpec(name="x", dtype="complex64", shape=("batch", 1))
    with pytest.raises(UnsupportedModelError, match="complex64"):
        config_text("net", [odd], [SCORES], has_labels=False)


# --- ONNX test data ------------------------------------------------------------------------------


def run_test_data(folder):
    """Run every data set as onnx_test_runner does, and return the largest relative error."""
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    errors = []
    for data_set in sorted(folder.glob("test_data_set_*")):
        feeds = {}
        for file in sorted(data_set.glob("input_*.pb")):
            tensor = onnx.load_tensor(file)
            feeds[tensor.name] = onnx.numpy_helper.to_array(tensor)
        for file, found in zip(
            sorted(data_set.glob("output_*.pb")), session.run(None, feeds), strict=True
        ):
            expected = onnx.numpy_helper.to_array(onnx.load_tensor(file))
            assert expected.dtype == found.dtype
            assert expected.shape == found.shape
            errors.append(np.abs(expected - found).max() / np.abs(expected).max())
    return len(errors), max(errors)


def test_the_test_data_agree_with_the_model(tmp_path, model, golden):
    tensors = {"inputs": [IMAGE], "outputs": [SCORES]}
    write_onnx_test_data(tmp_path / "data", model=model, golden=golden, **tensors)
    num, error = run_test_data(tmp_path / "data")
    assert num == 1
    assert error < 1e-6


def test_a_fixed_batch_gives_a_data_set_for_each_whole_batch(tmp_path, model, golden):
    tensors = {
        "inputs": [TensorSpec(name="x", dtype="float", shape=(2, 1, 2, 2))],
        "outputs": [TensorSpec(name="y", dtype="float", shape=(2, 3))],
    }
    write_onnx_test_data(tmp_path / "data", model=model, golden=golden, **tensors)
    assert run_test_data(tmp_path / "data")[0] == 2
    tensors["inputs"] = [TensorSpec(name="x", dtype="float", shape=(6, 1, 2, 2))]
    with pytest.raises(UnsupportedModelError, match="batches of 6; there are 5") as caught:
        write_onnx_test_data(tmp_path / "more", model=model, golden=golden, **tensors)
    assert "--num-inputs 6" in caught.value.fix


def test_several_outputs_are_taken_apart(tmp_path, model, golden):
    outputs = [
        TensorSpec(name="a", dtype="float", shape=("batch", 1)),
        TensorSpec(name="b", dtype="double", shape=("batch", 2, 1)),
    ]
    write_onnx_test_data(
        tmp_path / "data", model=model, golden=golden, inputs=[IMAGE], outputs=outputs
    )
    folder = tmp_path / "data" / "test_data_set_0"
    a, b = (
        onnx.numpy_helper.to_array(onnx.load_tensor(folder / f"output_{k}.pb")) for k in range(2)
    )
    np.testing.assert_array_equal(a, golden.reference[:, :1].astype(np.float32))
    np.testing.assert_array_equal(b, golden.reference[:, 1:, None])


def test_an_output_of_open_shape_is_refused(tmp_path, model, golden):
    outputs = [TensorSpec(name="y", dtype="float", shape=("batch", "classes"))]
    with pytest.raises(UnsupportedModelError, match="open"):
        write_onnx_test_data(
            tmp_path / "data", model=model, golden=golden, inputs=[IMAGE], outputs=outputs
        )
    assert not (tmp_path / "data").exists()


# --- ORT format ----------------------------------------------------------------------------------


def test_the_ort_file_computes_the_same_and_lists_its_operators(tmp_path, model, golden, capfd):
    write_ort_format(tmp_path / "ort", model=model, golden=golden)
    assert sorted(path.name for path in (tmp_path / "ort").iterdir()) == [
        "model.ort",
        "model.required_operators.config",
    ]
    config = (tmp_path / "ort" / "model.required_operators.config").read_text()
    assert "MatMul" in config or "Gemm" in config
    assert str(tmp_path) not in config
    assert str(tmp_path).encode() not in (tmp_path / "ort" / "model.ort").read_bytes()
    session = onnxruntime.InferenceSession(
        tmp_path / "ort" / "model.ort", providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": golden.inputs})
    np.testing.assert_allclose(found, golden.reference, rtol=1e-5, atol=1e-5)
    assert capfd.readouterr().out == ""


def test_an_ort_file_that_computes_something_else_is_not_kept(tmp_path, model, golden):
    golden.reference[0, 0] += 1
    with pytest.raises(ResdeployError, match="does not compute"):
        write_ort_format(tmp_path / "ort", model=model, golden=golden)
    assert not (tmp_path / "ort").exists()


def test_a_model_that_cannot_be_converted_is_refused(tmp_path, golden):
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    with pytest.raises(UnsupportedModelError, match="cannot convert"):
        write_ort_format(tmp_path / "ort", model=tmp_path / "bad.onnx", golden=golden)
    assert not (tmp_path / "ort").exists()
