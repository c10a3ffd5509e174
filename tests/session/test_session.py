"""Sessions: what opens, what is refused, and that nothing ever runs on the CPU in secret."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser, save_model

from resdeploy.errors import ProviderError, ResdeployError
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session import diagnosis as diagnosis_module
from resdeploy.session import runtime as runtime_module
from resdeploy.session import session as session_module
from resdeploy.session.providers import find_provider
from resdeploy.session.runtime import ort_state, runtime_distribution
from resdeploy.session.session import input_specs, open_session, output_specs

CUDA = SessionSpec(provider="cuda")
has_cuda_in_its_wheel = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs onnxruntime-gpu",
)


def model_proto(body="y = Relu(x)", *, ir_version=8, opset=18):
    return parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'
        f"tiny (float[N, 3] x) => (float[N, 3] y) {{ {body} }}"
    )


@pytest.fixture
def model():
    return model_proto().SerializeToString()


def matmul_and_batchnorm():
    """A BatchNorm behind a transposition, which it does not commute with."""
    model = model_proto(
        "a = MatMul(x, w) t = Transpose<perm=[1, 0]>(a) "
        "b = BatchNormalization(t, gamma, beta, mean, var) y = Transpose<perm=[1, 0]>(b)"
    )
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    random = np.random.default_rng(0)
    weights = {name: random.uniform(0.5, 2, 3) for name in ("gamma", "beta", "mean", "var")}
    for name, value in {"w": random.normal(size=(3, 3)), **weights}.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return model.SerializeToString()


# --- sessions that open --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "ort_name"),
    [
        ("disabled", "ORT_DISABLE_ALL"),
        ("basic", "ORT_ENABLE_BASIC"),
        ("extended", "ORT_ENABLE_EXTENDED"),
        ("all", "ORT_ENABLE_ALL"),
    ],
)
def test_a_session_computes_what_the_model_says(model, level, ort_name):
    session = open_session(model, SessionSpec(graph_level=level))
    x = np.array([[-1, 0, 2]], np.float32)
    outputs = session.run({"x": x})
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], [[0, 0, 2]])
    assert session.ort.get_session_options().graph_optimization_level.name == ort_name


def test_a_session_opens_from_a_file_too(tmp_path, model):
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    assert open_session(path, SessionSpec()).run({"x": np.ones((1, 3), np.float32)})


def test_a_session_says_what_it_runs_on(model):
    spec = SessionSpec(num_threads=1)
    info = open_session(model, spec).info
    assert info.spec == spec
    assert info.runtime.startswith("onnxruntime")
    assert info.runtime_version == onnxruntime.__version__
    assert info.active_providers == ("CPUExecutionProvider",)


@pytest.mark.skipif(
    not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"),
    reason="needs onnxruntime 1.24",
)
def test_the_nodes_are_counted_for_each_provider():
    body = "a = Relu(x) b = Tanh(a) y = Add(b, x)"
    info = open_session(model_proto(body).SerializeToString(), SessionSpec()).info
    assert info.nodes_by_provider == {"CPUExecutionProvider": 3}


def test_an_older_runtime_that_cannot_count_nodes_says_none(model, monkeypatch):
    monkeypatch.setattr(session_module, "_records_placement", lambda: False)
    assert open_session(model, SessionSpec()).info.nodes_by_provider is None


@pytest.mark.parametrize("in_a_file", [True, False])
def test_a_fusion_that_changes_the_model_is_switched_off_and_named(tmp_path, in_a_file):
    model = matmul_and_batchnorm()
    (tmp_path / "model.onnx").write_bytes(model)
    x = {"x": np.eye(3, dtype=np.float32)}
    as_it_stands = open_session(model, SessionSpec(graph_level="disabled")).run(x)["y"]
    session = open_session(tmp_path / "model.onnx" if in_a_file else model, SessionSpec())
    assert session.info.disabled_optimizers == ("MatMul_BatchNormalization_Fusion",)
    np.testing.assert_allclose(session.run(x)["y"], as_it_stands, rtol=1e-5)
    # The day this runtime computes it rightly, the table of wrong versions needs an end.
    plain = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert np.abs(plain.run(None, x)[0] - as_it_stands).max() > 0.1


def test_no_fusion_is_switched_off_where_there_is_no_batchnorm(model):
    assert open_session(model, SessionSpec()).info.disabled_optimizers == ()


def test_the_threads_asked_for_are_the_threads_set(model):
    session = open_session(model, SessionSpec(num_threads=1))
    assert session.ort.get_session_options().intra_op_num_threads == 1


def test_the_session_never_falls_back_while_it_runs(model):
    assert open_session(model, SessionSpec()).ort._enable_fallback is False


def test_inputs_and_outputs_are_described(model):
    session = open_session(model, SessionSpec())
    assert input_specs(session) == (TensorSpec(name="x", dtype="float32", shape=("N", 3)),)
    assert output_specs(session) == (TensorSpec(name="y", dtype="float32", shape=("N", 3)),)


def test_a_dynamic_dimension_without_a_name_and_other_types_are_described():
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [None, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [None, 3])],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    (tensor,) = input_specs(open_session(proto.SerializeToString(), SessionSpec()))
    assert tensor == TensorSpec(name="x", dtype="float16", shape=("?", 3))


def test_opening_and_running_prints_nothing(model, capfd):
    open_session(model, SessionSpec()).run({"x": np.ones((1, 3), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_what_is_printed_afterwards_arrives(model, capfd):
    open_session(model, SessionSpec())
    subprocess.run(["echo", "from a child"], check=True)
    print("from Python")
    assert sorted(capfd.readouterr().out.splitlines()) == ["from Python", "from a child"]


@pytest.mark.cuda
def test_a_session_on_cuda_really_runs_there(model):
    session = open_session(model, CUDA)
    assert session.info.active_providers[0] == "CUDAExecutionProvider"
    assert session.info.nodes_by_provider in (None, {"CUDAExecutionProvider": 1})
    np.testing.assert_array_equal(session.run({"x": -np.ones((1, 3), np.float32)})["y"], 0)


# --- models and inputs that are refused ----------------------------------------------------------


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ResdeployError, match="no such model") as caught:
        open_session(tmp_path / "none.onnx", SessionSpec())
    assert caught.value.where == str(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08"])
@pytest.mark.parametrize("provider", ["cpu", pytest.param("cuda", marks=has_cuda_in_its_wheel)])
def test_a_file_that_is_not_onnx_is_the_users_error_on_any_provider(tmp_path, content, provider):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ResdeployError, match="not an ONNX model") as caught:
        open_session(path, SessionSpec(provider=provider))
    assert caught.value.where == str(path)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ir_version": 99}, r"IR version 99; this runtime reads up to \d+"),
        ({"opset": 99}, r"opset 99 of ai\.onnx; this runtime knows up to \d+"),
    ],
)
def test_a_model_that_is_too_new_is_told_by_its_versions(changes, message):
    with pytest.raises(ResdeployError, match=message) as caught:
        open_session(model_proto(**changes).SerializeToString(), SessionSpec())
    assert "pip install -U onnxruntime" in caught.value.fix


def test_an_operator_that_does_not_exist_is_named_without_the_runtimes_codes():
    with pytest.raises(ResdeployError, match="Foo") as caught:
        open_session(model_proto("y = Foo(x)").SerializeToString(), SessionSpec())
    assert "ONNXRuntimeError" not in str(caught.value)
    assert "\n" not in caught.value.what


def test_missing_external_weights_are_named(tmp_path):
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [weight],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    path = tmp_path / "model.onnx"
    save_model(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    open_session(path, SessionSpec())
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ResdeployError, match=r"'w\.bin' with the model's weights is missing"):
        open_session(path, SessionSpec())


def outside(location="../secret.bin", name="w"):
    """A tensor of one number, in a file of its own."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value=location)
    return tensor


def in_an_initializer(model, tensor):
    model.graph.initializer.append(tensor)


def in_an_attribute(model, tensor):
    model.graph.node[0].attribute.add(name="value").t.CopyFrom(tensor)


def in_a_list(model, tensor):
    model.graph.node[0].attribute.add(name="values").tensors.append(tensor)


def in_a_subgraph_of_a_subgraph(model, tensor):
    branch = model.graph.node[0].attribute.add(name="then_branch").g
    branch.node.add().attribute.add(name="body").graphs.add().initializer.append(tensor)


def in_a_sparse_initializer(model, tensor):
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def in_a_sparse_attribute(model, tensor):
    attribute = model.graph.node[0].attribute.add(name="value")
    attribute.sparse_tensor.values.name = "v"
    attribute.sparse_tensor.indices.CopyFrom(tensor)


def in_a_list_of_sparse_tensors(model, tensor):
    attribute = model.graph.node[0].attribute.add(name="values")
    attribute.sparse_tensors.add().values.CopyFrom(tensor)


def in_a_function(model, tensor):
    model.functions.add(name="f").node.add().attribute.add(name="value").t.CopyFrom(tensor)


def in_a_default_of_a_function(model, tensor):
    model.functions.add(name="f").attribute_proto.add(name="value").t.CopyFrom(tensor)


def in_what_trains_it(model, tensor):
    model.training_info.add().initialization.initializer.append(tensor)


def in_a_step_of_training(model, tensor):
    model.training_info.add().algorithm.initializer.append(tensor)


@pytest.mark.parametrize(
    "place",
    [
        *(in_an_initializer, in_an_attribute, in_a_list, in_a_subgraph_of_a_subgraph),
        *(in_a_sparse_initializer, in_a_sparse_attribute, in_a_list_of_sparse_tensors),
        *(in_a_function, in_a_default_of_a_function, in_what_trains_it, in_a_step_of_training),
    ],
)
def test_weights_outside_the_folder_are_refused_wherever_they_are(tmp_path, monkeypatch, place):
    """ONNX Runtime 1.18 opened `../outside.bin`: a bundle computed with a file not in it."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)  # it is not to get that far
    proto = model_proto()
    place(proto, outside())
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    for model in (path, proto.SerializeToString()):
        with pytest.raises(ResdeployError, match="'w' lies outside the folder of the model"):
            open_session(model, SessionSpec())


@pytest.mark.parametrize(
    "location",
    [
        *("/etc/passwd", "sub/../../secret.bin", "C:\\secret.bin", "..\\secret.bin", ""),
        *("link.bin", "*/_ORT_MEM_ADDR_/*", "a\0b", "XX.bin"),
    ],
)
def test_no_way_leads_out_of_the_folder(tmp_path, location):
    inside = tmp_path / "inside"
    inside.mkdir()
    for link in ("link.bin", os.fsdecode(b"\xff\xfe.bin")):
        (inside / link).symlink_to(tmp_path / "secret.bin")
    proto = model_proto()
    proto.graph.initializer.append(outside(location))
    # A name of bytes that are no text is one that the protobuf package does not write.
    raw = proto.SerializeToString().replace(b"XX.bin", b"\xff\xfe.bin")
    (inside / "model.onnx").write_bytes(raw)
    with pytest.raises(ResdeployError, match="lies outside the folder of the model"):
        open_session(inside / "model.onnx", SessionSpec())


def test_a_link_that_goes_in_circles_is_an_error_of_the_model(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    proto = model_proto("y = Add(x, w)")
    proto.graph.initializer.append(outside("circle"))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ResdeployError):
        open_session(tmp_path / "model.onnx", SessionSpec())


def test_a_weight_whose_message_comes_in_two_pieces_is_seen(tmp_path):
    """Protocol buffers join them; and skip a group, which stands for nothing in ONNX."""
    one, other = model_proto(), model_proto()
    one.graph.node[0].attribute.add(name="value").t.data_location = 1
    (tmp_path / "pieces.onnx").write_bytes(one.SerializeToString() + other.SerializeToString())
    with pytest.raises(ResdeployError, match="lies outside"):
        open_session(tmp_path / "pieces.onnx", SessionSpec())
    other.graph.initializer.append(outside())
    (tmp_path / "group.onnx").write_bytes(b"\xa3\x06\xa4\x06" + other.SerializeToString())
    with pytest.raises(ResdeployError, match="not an ONNX model"):
        open_session(tmp_path / "group.onnx", SessionSpec())


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"z": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 4), np.float32)},
        {"x": np.ones((1, 3), np.float64)},
    ],
    ids=["none", "another name", "another shape", "another type"],
)
def test_inputs_that_are_not_the_models_are_the_users_error(model, inputs):
    session = open_session(model, SessionSpec())
    with pytest.raises(ResdeployError, match="does not take these inputs"):
        session.run(inputs)


def test_an_unknown_provider_and_no_threads_are_refused(model):
    with pytest.raises(ResdeployError, match="no provider 'tpu'"):
        open_session(model, SessionSpec(provider="tpu"))
    with pytest.raises(ResdeployError, match="threads is 0"):
        open_session(model, SessionSpec(num_threads=0))


# --- face 1: the wheel was built without the provider --------------------------------------------


def forbid_sessions(monkeypatch):
    def fail(*_, **__):
        pytest.fail("a session was made")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)


def test_a_wheel_without_the_provider_is_an_error_before_any_session(model, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    forbid_sessions(monkeypatch)
    with pytest.raises(ProviderError, match="built without CUDAExecutionProvider") as caught:
        open_session(model, CUDA)
    assert "pip uninstall -y onnxruntime" in caught.value.fix
    assert "onnxruntime-gpu[cuda,cudnn]" in caught.value.fix
    assert caught.value.exit_code == 3


# --- face 2: a library of the provider is missing ------------------------------------------------


@has_cuda_in_its_wheel
@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux libraries")
def test_cuda_that_does_not_start_is_one_readable_message_and_nothing_else(model, capfd, no_cuda):
    capfd.readouterr()
    with pytest.raises(ProviderError) as caught:
        open_session(model, CUDA)
    assert capfd.readouterr() == ("", "")
    error = caught.value
    assert error.what.startswith("CUDAExecutionProvider did not start: lib")
    assert ".so" in error.what
    assert "onnxruntime-gpu" in error.where
    assert "onnxruntime-gpu[cuda,cudnn]" in error.fix or "driver" in error.fix
    # What the runtime printed is kept for a report of a bug, out of the user's sight.
    assert "CUDAExecutionProvider" in "".join(error.__notes__)
    assert "provider_bridge" not in str(error)


@has_cuda_in_its_wheel
def test_nothing_runs_when_cuda_does_not_start(model, monkeypatch, no_cuda):
    def fail(*_, **__):
        pytest.fail("something ran")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    with pytest.raises(ProviderError):
        open_session(model, CUDA)


@has_cuda_in_its_wheel
def test_python_streams_that_lead_elsewhere_stay_clean_too(model, capsys, no_cuda):
    """The banner of face 3 is printed by Python, not by C: sys.stdout need not be descriptor 1."""
    capsys.readouterr()
    with pytest.raises(ProviderError):
        open_session(model, CUDA)
    assert capsys.readouterr() == ("", "")


# --- faces that this machine may not have, played by a runtime that is not real ------------------


class FakeSession:
    """Stands for `onnxruntime.InferenceSession`, once for each session that is made."""

    made = ()

    def __init__(self, _model, options, *, providers, enable_fallback, disabled_optimizers):
        self.strict = _config(options, "session.disable_cpu_ep_fallback") == "1"
        FakeSession.made = (*FakeSession.made, self)
        assert enable_fallback == 0
        ((self.asked, _),) = providers

    def get_providers(self):
        return [self.asked, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        return [subgraph(self.asked, ("conv", "Conv"))]

    def run(self, *_):
        pytest.fail("something ran")


def _config(options, key):
    try:
        return options.get_session_config_entry(key)
    except RuntimeError:
        return None


def subgraph(provider, *nodes):
    return types.SimpleNamespace(
        ep_name=provider,
        get_nodes=lambda: [types.SimpleNamespace(name=n, op_type=op) for n, op in nodes],
    )


@pytest.fixture
def fake(monkeypatch):
    """Return a function that puts a changed FakeSession in the runtime's place."""
    FakeSession.made = ()

    def install(**changes):
        kind = type("Fake", (FakeSession,), changes)
        monkeypatch.setattr(onnxruntime, "InferenceSession", kind)
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"]
        )
        # Opening the real library of the provider would load CUDA into the tests.
        monkeypatch.setattr(diagnosis_module, "_load_failure", lambda _: "")

    return install


def test_the_fake_session_opens_when_nothing_is_wrong(model, fake):
    fake()
    info = open_session(model, CUDA).info
    assert info.active_providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert info.nodes_by_provider == {"CUDAExecutionProvider": 1}
    assert [session.strict for session in FakeSession.made] == [True]


def test_a_session_that_runs_elsewhere_is_an_error(model, fake):
    fake(get_providers=lambda _: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match="runs on CPUExecutionProvider, not on CUDA"):
        open_session(model, CUDA)


def test_a_single_node_elsewhere_is_an_error_that_names_it(model, fake):
    fake(
        get_provider_graph_assignment_info=lambda self: [
            subgraph(self.asked, ("conv", "Conv")),
            subgraph("CPUExecutionProvider", ("pool", "MaxPool"), ("", "Relu")),
        ]
    )
    with pytest.raises(ProviderError, match=r"pool \(MaxPool\) on CPUEx.*, Relu on CPUEx"):
        open_session(model, CUDA)


def test_many_nodes_elsewhere_are_named_in_part_and_counted(model, fake):
    nodes = [(f"n{i}", "Relu") for i in range(8)]
    fake(get_provider_graph_assignment_info=lambda _: [subgraph("CPUExecutionProvider", *nodes)])
    with pytest.raises(ProviderError, match="and 3 more"):
        open_session(model, CUDA)


def test_a_started_provider_that_refuses_a_node_is_told_apart_from_one_that_did_not_start(
    model, fake
):
    def refuse(self, *arguments, **options):
        FakeSession.__init__(self, *arguments, **options)
        if self.strict:
            raise ort_state.Fail(
                "This session contains graph nodes that are assigned to the default CPU EP, but "
                "fallback to CPU EP has been explicitly disabled by the user."
            )

    fake(
        __init__=refuse,
        get_provider_graph_assignment_info=lambda self: [
            subgraph(self.asked, ("conv", "Conv")),
            subgraph("CPUExecutionProvider", ("shape", "Shape")),
        ],
    )
    with pytest.raises(ProviderError, match=r"cannot run every node.*shape \(Shape\)") as caught:
        open_session(model, CUDA)
    assert "did not start" not in caught.value.what
    assert [session.strict for session in FakeSession.made] == [True, False]


def test_a_machine_without_a_device_is_told_in_words_and_without_its_name(
    model, fake, monkeypatch, capfd
):
    """Face 3: the libraries load, and there is no device."""

    def fail(*_, **__):
        print("*************** EP Error ***************")
        raise RuntimeError(
            "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=my-laptop ; "
            "file=/onnxruntime_src/cuda_call.cc ; line=123 ; expr=cudaSetDevice(0);"
        )

    fake(__init__=fail)
    monkeypatch.setattr(diagnosis_module, "_loader_error", lambda _: "")
    with pytest.raises(ProviderError, match="no CUDA-capable device is detected") as caught:
        open_session(model, CUDA)
    assert "my-laptop" not in str(caught.value)
    assert "driver" in caught.value.fix
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux libraries")
@pytest.mark.parametrize("has_driver", [False, True])
def test_the_message_says_whether_the_driver_is_the_trouble(model, fake, monkeypatch, has_driver):
    def fail(*_, **__):
        raise RuntimeError("libcudnn.so.9: cannot open shared object file: No such file")

    fake(__init__=fail)
    monkeypatch.setattr(diagnosis_module, "_loader_error", lambda _: "" if has_driver else "none")
    with pytest.raises(ProviderError, match=r"libcudnn\.so\.9 is missing") as caught:
        open_session(model, CUDA)
    assert ("the NVIDIA driver (libcuda.so.1) is missing" in caught.value.what) != has_driver
    assert ("install the NVIDIA driver" in caught.value.fix) != has_driver
    assert "onnxruntime-gpu[cuda,cudnn]" in caught.value.fix


@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux libraries")
def test_a_missing_driver_alone_does_not_ask_for_other_libraries(model, fake, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("libcuda.so.1: cannot open shared object file: No such file")

    fake(__init__=fail)
    monkeypatch.setattr(diagnosis_module, "_loader_error", lambda _: "none")
    with pytest.raises(ProviderError) as caught:
        open_session(model, CUDA)
    assert caught.value.what.count("libcuda.so.1") == 1
    assert "pip" not in caught.value.fix


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("cudaErrorNoKernelImageForDevice: no kernel image"), "no code for this"),
        (RuntimeError("libcudnn_ops.so.9: cannot open shared object file"), "libcudnn_ops"),
        (ort_state.NotImplemented("Conv needs cuDNN"), "cuDNN is missing"),
        (ort_state.EPFail("CUDA failure 700: illegal ; x=1"), "failure 700"),
    ],
)
def test_a_provider_that_fails_while_it_runs_is_an_error_and_not_a_fallback(
    model, fake, error, message
):
    def fail(*_):
        raise error

    fake(run=fail)
    session = open_session(model, CUDA)
    with pytest.raises(ProviderError, match=message):
        session.run({"x": np.ones((1, 3), np.float32)})


# --- the installation ----------------------------------------------------------------------------


def test_two_runtimes_in_one_folder_are_an_error_with_the_way_out(model, monkeypatch):
    monkeypatch.setattr(
        runtime_module,
        "_is_installed",
        lambda name: name in ("onnxruntime", "onnxruntime-gpu"),
    )
    forbid_sessions(monkeypatch)
    with pytest.raises(ProviderError, match="onnxruntime and onnxruntime-gpu") as caught:
        open_session(model, SessionSpec())
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.fix


def test_a_runtime_without_metadata_is_called_onnxruntime(monkeypatch):
    monkeypatch.setattr(runtime_module, "_is_installed", lambda _: False)
    assert runtime_distribution() == "onnxruntime"


def test_a_runtime_that_is_only_hidden_by_another_is_no_second_one(monkeypatch, tmp_path):
    """As where a GPU runtime was carried along in PYTHONPATH: nothing overwrites anything."""
    ours, other = runtime_distribution(), tmp_path / "site"
    name = "onnxruntime" if ours != "onnxruntime" else "onnxruntime-gpu"
    metadata = other / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(other))
    assert importlib.metadata.version(name) == "1.0"
    assert runtime_distribution() == ours
    # In the folder of the runtime itself it is one.
    metadata.rename(metadata.parent / "aside")
    (other / "onnxruntime").symlink_to(Path(onnxruntime.__file__).parent)
    (other / "aside").rename(metadata)
    with pytest.raises(ProviderError, match="installed together"):
        runtime_distribution()


def import_session(*lines):
    script = "\n".join(
        [
            "import sys",
            *lines,
            "try:",
            "    import resdeploy.session.session",
            "except Exception as error:",
            "    print(type(error).__name__, error)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("first", ["session.runtime", "quant.qdq", "quant.runtime"])
def test_a_session_leaves_no_file_of_telemetry(model, tmp_path, first):
    """ONNX Runtime 1.31 keeps a device's number and a store of events in HOME and TMPDIR."""
    script = f"""
import resdeploy.{first}, onnxruntime, subprocess, sys
onnxruntime.InferenceSession({model!r}, providers=["CPUExecutionProvider"])
child = "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
assert subprocess.check_output([sys.executable, "-c", child], text=True) == "1\\n"
"""
    home = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    environment = {**os.environ, **home, "ORT_DISABLE_TELEMETRY": "0"}
    before = set(tmp_path.rglob("*"))
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert set(tmp_path.rglob("*")) == before


def test_a_missing_runtime_names_the_extra_that_brings_it():
    text = import_session("sys.modules['onnxruntime'] = None")
    assert text.startswith("MissingExtraError")
    assert "pip install" in text
    assert "[cpu]" in text


def test_what_is_left_after_one_of_two_runtimes_was_removed_is_told(tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    text = import_session(f"sys.path.insert(0, {str(tmp_path)!r})", "import onnxruntime")
    if "ProviderError" not in text:
        # A folder without __init__.py loses against a real package later on the path.
        (tmp_path / "onnxruntime" / "__init__.py").touch()
        text = import_session(f"sys.path.insert(0, {str(tmp_path)!r})")
    assert text.startswith("ProviderError The installed onnxruntime is damaged")
    assert "uninstall" in text


def test_libraries_that_are_python_packages_are_loaded_first_and_quietly(
    model, fake, monkeypatch, tmp_path, capfd
):
    for folder in ("cu13", "cudnn"):
        (tmp_path / "nvidia" / folder / "lib").mkdir(parents=True)
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    calls = []

    def preload_dlls(**options):
        assert not FakeSession.made
        print("Failed to load libcublasLt.so.13")
        calls.append(options)

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    fake()
    open_session(model, CUDA)
    assert calls == [
        {},
        {"cudnn": False, "directory": str(tmp_path / "nvidia" / "cu13" / "lib")},
        {"cuda": False, "directory": str(tmp_path / "nvidia" / "cudnn" / "lib")},
    ]
    assert capfd.readouterr() == ("", "")


def test_nothing_is_preloaded_for_the_cpu_or_without_such_packages(model, fake, monkeypatch):
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **_: pytest.fail("preloaded"))
    open_session(model, SessionSpec())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    fake()
    open_session(model, CUDA)


def test_the_loader_of_the_provider_library_is_asked_when_the_runtime_is_silent(monkeypatch):
    """Some versions log nothing: the library's own loading error names what is missing."""
    provider = find_provider("cuda")
    monkeypatch.setattr(ort_state, "__file__", str(Path("nowhere") / "x.so"))
    assert "nowhere" in diagnosis_module._load_failure(provider)
    assert diagnosis_module._load_failure(find_provider("cpu")) == ""
