"""The execution providers resdeploy can open a session on: one table, one entry each.

Nothing here imports the runtime, so the names are known to a machine that has none.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from resdeploy.errors import ResdeployError
from resdeploy.near import did_you_mean
from resdeploy.schema.sessions import PrecisionName, SessionSpec

if TYPE_CHECKING:
    from resdeploy.schema.quants import IntegerTypes

__all__ = ["PROVIDERS", "ArithmeticSwitch", "Provider", "find_provider"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticSwitch:
    """A provider's faster arithmetic than float32, and the fields of a `SessionSpec` that choose.

    Attributes:
        precision: the faster arithmetic.
        exact: the fields for float32.
        fast: the fields for the faster one.
        advice: the remark in a report on a session that computed in the faster one.
    """

    precision: PrecisionName
    exact: Mapping[str, Any]
    fast: Mapping[str, Any]
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An ONNX Runtime execution provider: its options, libraries and arithmetic.

    Attributes:
        name: the short name users give.
        ort_name: ONNX Runtime's name for it.
        options: from a `SessionSpec` to the provider's options.
        install: the command that installs a runtime with this provider.
        library: the stem of the shared library with the provider, in the runtime's folder; None
            where it is part of the runtime itself.
        plugin: the Python package with the provider as a plugin library, for any runtime that does
            not hold the provider itself; "" where there is no such package.
        built_in: the distribution of the runtime that holds such a provider; None where there is
            none.
        built_in_options: further options of that one, which a plugin's device settles.
        devices: the devices of a plugin, in words.
        device_kind: their kind, as ONNX Runtime names it: CPU, GPU or NPU.
        arithmetics: its switch between float32 and a faster arithmetic; None where it has float32
            only.
        on_cpu: True where it computes on the CPU, so that the number of threads is a choice.
        is_fallback: True for the runtime's own, which takes every operator.
        memory: the device of its tensors, as ONNX Runtime names it.
        has_layer_times: True where the runtime's profile holds the time of each layer.
        computes_float16: True where a float16 model is computed in float16; False where it is
            widened to float32 first, None where that depends on the device.
        integer_types: those of an int8 model for it; None where the CPU's suit it.
        choices: fields of a `SessionSpec`, each with the values that `tune` tries in every
            combination.
    """

    name: str
    ort_name: str
    options: Callable[[SessionSpec], dict[str, str]]
    install: str
    library: str | None = None
    plugin: str = ""
    built_in: str | None = None
    built_in_options: Mapping[str, str] = field(default_factory=dict)
    devices: str = ""
    device_kind: str = "CPU"
    arithmetics: ArithmeticSwitch | None = None
    on_cpu: bool = False
    is_fallback: bool = False
    memory: Literal["cpu", "cuda"] = "cpu"
    has_layer_times: bool = False
    computes_float16: bool | None = None
    integer_types: "IntegerTypes | None" = None
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def on_nvidia(self) -> bool:
        """True on a GPU of NVIDIA, with its driver and its libraries as Python packages."""
        return self.memory == "cuda"


def _cuda_options(spec: SessionSpec) -> dict[str, str]:
    # Not named here, as older releases do not know them, are two that are off by default:
    # fuse_conv_bias, which others measured to be a third slower and in places wrong, and
    # use_ep_level_unified_stream, as these networks have next to nothing to run side by side.
    return {
        "device_id": "0",
        # ONNX Runtime's own default is 1: products of float32 with 10 bits of mantissa, a
        # thousand times the rounding error, so that a verification would measure only this.
        "use_tf32": "1" if spec.use_tf32 else "0",
        # cuDNN times its algorithms at the first run of each input shape: warm up every batch
        # size. DEFAULT takes cuDNN's fallback heuristics instead, a few percent slower.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # Without it the workspace is held to 32 MB, which rules out the fast algorithms.
        "cudnn_conv_use_max_workspace": "1",
        # Takes only the requested memory, once for each shape, in the warm-up. Doubling, ONNX
        # Runtime's default, asks less often and may hold twice the memory, which on a Jetson is
        # the CPU's too.
        "arena_extend_strategy": "kSameAsRequested",
        # 0 copies on a stream of its own, and has let kernels read inputs that were not there
        # yet (onnxruntime issue 4829).
        "do_copy_in_default_stream": "1",
        # Pays where most of the graph is convolutions in float16; elsewhere it adds transposes.
        "prefer_nhwc": "1" if spec.prefer_nhwc else "0",
        # Takes the launches off the host, which is most of the time of a small batch. It needs
        # fixed shapes and addresses: `resdeploy.session.cuda_graph`.
        "enable_cuda_graph": "1" if spec.cuda_graph else "0",
    }


def _tensorrt_options(spec: SessionSpec) -> dict[str, str]:
    return {
        "device_id": "0",
        # Its engines follow the model's own types. float16 in a float32 model would be another
        # claim than the model makes.
        "trt_fp16_enable": "0",
        "trt_cuda_graph_enable": "1" if spec.cuda_graph else "0",
    }


def _xnnpack_options(spec: SessionSpec) -> dict[str, str]:
    # It has a thread pool of its own, which the session's number does not reach.
    return {} if spec.num_threads is None else {"intra_op_num_threads": str(spec.num_threads)}


def _openvino_options(spec: SessionSpec) -> dict[str, str]:
    config: dict[str, str] = {}
    if spec.precision_hint != "default":
        # Its own default is bfloat16 wherever the CPU has instructions for it, a relative error
        # near 1e-2. The provider's option `precision` is accepted and changes nothing (1.8.1).
        config["INFERENCE_PRECISION_HINT"] = spec.precision_hint
    if spec.num_threads is not None:
        # It has a thread pool of its own, which the session's number does not reach.
        config["INFERENCE_NUM_THREADS"] = str(spec.num_threads)
    return {"load_config": json.dumps({"CPU": config})} if config else {}


PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider(
            name="cpu",
            ort_name="CPUExecutionProvider",
            # The choices on the CPU (threads, memory) belong to the session.
            options=lambda spec: {},
            install="pip install onnxruntime",
            on_cpu=True,
            is_fallback=True,
            has_layer_times=True,
            computes_float16=False,
            choices={
                "spinning": (True, False),
                # "extended" leaves out the layouts of the CPU, whose conversions can cost more
                # than they gain where layers are small.
                "graph_level": ("all", "extended"),
            },
        ),
        Provider(
            name="cuda",
            ort_name="CUDAExecutionProvider",
            options=_cuda_options,
            # Not resdeploy[gpu]: that extra brings no CUDA libraries, as many machines have
            # them already.
            install='pip install "onnxruntime-gpu[cuda,cudnn]"',
            library="onnxruntime_providers_cuda",
            arithmetics=ArithmeticSwitch(
                precision="tf32",
                exact={"use_tf32": False},
                fast={"use_tf32": True},
                advice="TF32 is on: set use_tf32=0",
            ),
            memory="cuda",
            computes_float16=True,
            choices={"prefer_nhwc": (False, True), "cuda_graph": (False, True)},
        ),
        Provider(
            name="openvino",
            ort_name="OpenVINOExecutionProvider",
            options=_openvino_options,
            install="pip install onnxruntime-ep-openvino",
            plugin="onnxruntime_ep_openvino",
            # An older OpenVINO, which takes every x86-64 CPU; the plugin asks who made it.
            built_in="onnxruntime-openvino",
            built_in_options={"device_type": "CPU"},
            devices="Intel CPUs",
            arithmetics=ArithmeticSwitch(
                precision="bfloat16",
                exact={"precision_hint": "f32"},
                fast={"precision_hint": "default"},
                advice="bfloat16 is OpenVINO's default on CPUs that have it: set "
                "INFERENCE_PRECISION_HINT=f32",
            ),
            on_cpu=True,
        ),
        Provider(
            name="tensorrt",
            ort_name="TensorrtExecutionProvider",
            options=_tensorrt_options,
            # 11 is the newest, and ONNX Runtime's provider is linked to 10.
            install='pip install "onnxruntime-gpu[cuda,cudnn]" "tensorrt-cu13>=10,<11"',
            library="onnxruntime_providers_tensorrt",
            memory="cuda",
            computes_float16=True,
            integer_types="s8s8-symmetric",
            choices={"cuda_graph": (False, True)},
        ),
        Provider(
            name="coreml",
            ort_name="CoreMLExecutionProvider",
            options=lambda spec: {
                # The older format, its default, knows fewer operators.
                "ModelFormat": "MLProgram",
                # The Neural Engine computes in float16 only, which takes a float16 model.
                "MLComputeUnits": "CPUAndGPU",
                # Sums in float16 are too coarse for a float32 model.
                "AllowLowPrecisionAccumulationOnGPU": "0",
            },
            install="pip install onnxruntime on a Mac",
            computes_float16=True,
        ),
        Provider(
            name="qnn",
            ort_name="QNNExecutionProvider",
            # The tensor processor: "cpu" is a slow reference for testing.
            options=lambda spec: {"backend_type": "htp", "htp_performance_mode": "burst"},
            install="pip install onnxruntime-qnn",
            plugin="onnxruntime_qnn",
            devices="the tensor processors of Snapdragon",
            device_kind="NPU",
        ),
        Provider(
            name="xnnpack",
            ort_name="XnnpackExecutionProvider",
            options=_xnnpack_options,
            install="build ONNX Runtime with --use_xnnpack",
            on_cpu=True,
        ),
    )
}


def find_provider(name: str) -> Provider:
    """Return the provider with the short name `name`.

    Raises:
        ResdeployError: there is none; the message lists those there are.
    """
    if name not in PROVIDERS:
        # ONNX Runtime's own names are long: CPUExecutionProvider is cpu. A GPU's is one of three.
        by_ort_name = {one.ort_name: one.name for one in PROVIDERS.values()}
        listed = f"use one of: {', '.join(PROVIDERS)}"
        near = by_ort_name.get(name, name)
        raise ResdeployError(
            f"There is no provider {name!r}.",
            fix=listed if name == "gpu" else did_you_mean(near, PROVIDERS, otherwise=listed),
        )
    return PROVIDERS[name]
