"""Lower the precision of an ONNX file: model and data in, model and report out."""

import dataclasses
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx

from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_write
from resdeploy.graph.drop_unused import drop_unused
from resdeploy.graph.onnx_file import fed_inputs, load_onnx
from resdeploy.machine.compatibility import read_target
from resdeploy.machine.environment import read_cpu_features
from resdeploy.quant.calibration_data import check_shapes, load_calibration
from resdeploy.quant.float16 import quantize_float16
from resdeploy.quant.int8 import quantize_int8
from resdeploy.recipe import load_inputs
from resdeploy.schema.codec import from_json
from resdeploy.schema.exports import LABELS_KEY, PREPROCESS_KEY
from resdeploy.schema.quants import IntegerTypes, QuantReport, QuantSpec
from resdeploy.schema.recipes import DataSpec, Preprocess
from resdeploy.session.providers import PROVIDERS

__all__ = ["lacks_vnni", "quantize_file", "spec_for", "types_for"]

_ARM = ("aarch64", "arm64")
_WITHOUT_SATURATION = ("avx512_vnni", "avx_vnni", "amx_int8")


def spec_for(
    spec: QuantSpec, *, types: IntegerTypes | None, reduce_range: bool | None, target: Path | None
) -> tuple[QuantSpec, tuple[str, ...]]:
    """Return `spec` with the integer types of the target, and warnings about them.

    Args:
        spec: the request.
        types: those asked for; None to take the best for the target.
        reduce_range: weights of 7 bits, None to take them where the target needs them.
        target: the record of `probe` on the target; without it, it is this machine.

    Raises:
        ResdeployError: the record is missing or is none.
    """
    machine, features, wanted = platform.machine(), read_cpu_features(), None
    if target is not None:
        probe = read_target(target)
        machine, features = probe.environment.machine, probe.cpu_features
        wanted = types_for([found.provider for found in probe.providers if found.starts])
    types = types or wanted or ("s8s8" if machine.lower() in _ARM else "u8s8")
    saturates = types == "u8s8" and lacks_vnni(features)
    effect = "sums may be cut off" if reduce_range is False else "weights have 7 bits"
    warning = f"the CPU has no VNNI and adds products in 16 bits: {effect}"
    chosen = dataclasses.replace(
        spec, types=types, reduce_range=saturates if reduce_range is None else reduce_range
    )
    return chosen, (warning,) if saturates else ()


def lacks_vnni(cpu_features: Mapping[str, bool]) -> bool:
    """True for an x86 CPU that adds products in 16 bits, by `read_cpu_features`."""
    is_x86 = "avx2" in cpu_features
    return is_x86 and not any(cpu_features.get(name, False) for name in _WITHOUT_SATURATION)


def types_for(providers: Iterable[str]) -> IntegerTypes | None:
    """Return the integers that one of these providers insists on; None where none does."""
    # A probe also names providers that are not in the table.
    known = (PROVIDERS[name].integer_types for name in providers if name in PROVIDERS)
    return next(filter(None, known), None)


def quantize_file(
    path: Path,
    out: Path,
    spec: QuantSpec,
    data: DataSpec,
    *,
    recipe: str | None = None,
    preprocess: Preprocess | None = None,
    warnings: tuple[str, ...] = (),
    force: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_warning: Callable[[str], None] = lambda warning: None,
) -> QuantReport:
    """Lower the precision of the model in a file; it is written unless something is wrong with it.

    Args:
        path: a folded ONNX model in float32.
        out: the file to write.
        spec: the request.
        data: samples to calibrate and to judge with.
        recipe: whose preprocessing applies; the model's own is known if resdeploy exported it.
        preprocess: that without a recipe, if it is known.
        warnings: to go into the report.
        force: replace an existing file.
        on_stage: told the name of each stage.
        on_warning: told each warning about the samples, before anything is searched.

    Raises:
        ResdeployError: the model or the data is not usable, the request does not fit the model's
            outputs, or `out` exists.
    """
    on_stage("load")
    model = load_onnx(path)
    if recipe is not None:
        preprocess, _ = load_inputs(recipe)
    preprocess = preprocess or _preprocess_of(model)
    inputs = fed_inputs(model)
    samples = load_calibration(data, preprocess, inputs=[value.name for value in inputs])
    check_shapes(samples, {value.name: _sample_shape(value) for value in inputs})
    class_names = _labels_of(model)
    with suppress(_NotGoodEnoughError), atomic_write(out, force=force) as temporary:
        if spec.precision == "int8":
            quantized, report = quantize_int8(
                model,
                samples,
                spec,
                preprocess=preprocess,
                class_names=class_names,
                warnings=warnings,
                on_stage=on_stage,
                on_warning=on_warning,
            )
        else:
            quantized, report = quantize_float16(
                model,
                samples,
                spec,
                preprocess=preprocess,
                class_names=class_names,
                on_stage=on_stage,
                on_warning=on_warning,
            )
        if report.failures:
            raise _NotGoodEnoughError
        drop_unused(quantized)
        temporary.write_bytes(quantized.SerializeToString(deterministic=True))
        report = dataclasses.replace(report, output=out.name)
    return report


class _NotGoodEnoughError(Exception):
    """Ends `atomic_write` without a file."""


def _sample_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)[1:]


def _preprocess_of(model: onnx.ModelProto) -> Preprocess | None:
    """Return the preprocessing that `export` wrote into a model, None if there is none."""
    written = _metadata_of(model, PREPROCESS_KEY)
    return None if written is None else from_json(Preprocess, written, where=PREPROCESS_KEY)


def _labels_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the classes that `export` wrote into a model, () if there are none."""
    return tuple(map(str, _metadata_of(model, LABELS_KEY) or ()))


def _metadata_of(model: onnx.ModelProto, key: str) -> Any:
    for entry in model.metadata_props:
        if entry.key == key:
            try:
                return json.loads(entry.value)
            except ValueError as error:
                raise ResdeployError(f"This is not JSON: {error}.", where=key) from error
    return None
