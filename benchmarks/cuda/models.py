"""The networks, made once and kept in a folder: random weights, BatchNorms that know their data.

Speed and rounding do not ask what a network has learnt, but they do ask that its activations have
an ordinary size: fresh running statistics would let them grow from block to block. And they ask
that every layer counts: a residual branch as training begins with it is multiplied by zero, and
whatever went wrong in it would not be seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.cuda.records import Form, NetworkWork, RunSpec
from benchmarks.cuda.roofline import work_of
from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_directory, atomic_write
from resdeploy.schema.codec import dump_json, load_json

__all__ = ["Files", "make_model"]

_SEED = 0
_NUM_CALIBRATION = 16
# A large image fills the statistics by itself; a vector is one value each.
_NUM_STATISTICS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Paths of the files of one network, made or not."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, network: str, spec: RunSpec) -> "Files":
        """Return those of a network in the work folder of a run."""
        side = "own" if spec.side is None else str(spec.side)
        return cls(folder=folder.resolve() / f"{network}-{side}-{spec.num_inputs}")

    @property
    def checkpoint(self) -> Path:
        """The weights."""
        return self.folder / "checkpoint.safetensors"

    @property
    def golden(self) -> Path:
        """Inputs and float64 outputs."""
        return self.folder / "golden.npz"

    @property
    def work(self) -> Path:
        """Work of the layers."""
        return self.folder / "work.json"

    def model(self, form: Form) -> Path:
        """The ONNX file."""
        return self.folder / f"{form}.onnx"

    def read_work(self) -> NetworkWork:
        """Return the work of the layers.

        Raises:
            ResdeployError: the file is damaged.
            OSError: it is not there.
        """
        return load_json(NetworkWork, self.work.read_bytes(), where=self.work.name)


def make_model(
    files: Files,
    network: str,
    form: Form,
    spec: RunSpec,
    *,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> None:
    """Make the file of a form, and whatever it is made from; what is there is left as it is.

    Raises:
        ResdeployError: the network cannot be made, or what was made is not good.
    """
    if not files.folder.exists():
        files.folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(files.folder) as folder:
            _make_float32(Files(folder=folder), network, spec, on_stage)
    if form != "float32" and not files.model(form).exists():
        _lower(files, form, on_stage)


def _make_float32(
    files: Files, network: str, spec: RunSpec, on_stage: Callable[[str], None]
) -> None:
    import torch
    from torch import nn

    from resdeploy.export.export import export_onnx
    from resdeploy.export.golden import golden_for
    from resdeploy.export.source import SourceModel
    from resdeploy.networks import build_network, input_shape
    from resdeploy.schema.exports import ExportSpec
    from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess
    from resdeploy.training.checkpoint import save_checkpoint
    from resdeploy.verify.golden_file import save_golden

    on_stage("weights")
    torch.manual_seed(_SEED)
    shape = input_shape(ModelSpec(arch=network, num_classes=1))
    is_large = len(shape) == 3 and shape[1] > 64
    # As the data sets of their papers have.
    model = ModelSpec(arch=network, num_classes=1000 if is_large else 10)
    if len(shape) == 3 and spec.side is not None:
        shape = (shape[0], spec.side, spec.side)
    module = build_network(model)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.momentum = None  # the mean of all it sees, from the first batch on
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    with torch.no_grad():
        for _ in range(2):
            module(torch.randn(_NUM_STATISTICS, *shape))
    preprocess = Preprocess(input_shape=shape, color="rgb" if len(shape) == 3 else "none")
    info = CheckpointInfo(model=model, preprocess=preprocess)
    save_checkpoint(files.checkpoint, module, info)
    source = SourceModel(module=module.eval(), input_shape=shape, description=network, info=info)
    on_stage("float64 reference")
    golden = golden_for(source, num_inputs=spec.num_inputs)
    save_golden(files.golden, golden)
    on_stage("export")
    report = export_onnx(source, ExportSpec(), files.model("float32"), golden=golden)
    if not files.model("float32").is_file():
        verdicts = report.verification.verdicts if report.verification is not None else ()
        reasons = "; ".join(reason for verdict in verdicts for reason in verdict.reasons)
        raise ResdeployError(
            f"The exported network does not compute what its checkpoint does: {reasons}.",
            where=network,
        )
    on_stage("count the work")
    files.work.write_text(dump_json(work_of(files.model("float32"))), encoding="utf-8")


def _lower(files: Files, form: Form, on_stage: Callable[[str], None]) -> None:
    """Make the float16 or int8 file: calibrated on noise, and nothing tried that costs time."""
    import tempfile

    from resdeploy.quant.quantize import quantize_file, spec_for
    from resdeploy.schema.quants import QuantSpec
    from resdeploy.schema.recipes import DataSpec
    from resdeploy.verify.golden_file import load_golden

    asked = QuantSpec(
        precision="int8" if form == "int8" else "float16",
        method="minmax",
        equalize="off",
        pixel_grid="off",
        refine="off",
        rounding="off",
        bias_correction="off",
        max_flips=1.0,  # near-ties of random weights; what the error may be, the verdict says
    )
    quant_spec, warnings = spec_for(asked, types="u8s8", reduce_range=None, target=None)
    shape = load_golden(files.golden).inputs.shape[1:]
    noise = np.random.default_rng(_SEED + 1).standard_normal(
        (_NUM_CALIBRATION, *shape), dtype=np.float32
    )
    with tempfile.TemporaryDirectory() as folder, atomic_write(files.model(form)) as out:
        samples = Path(folder) / "noise.npz"
        np.savez(samples, x=noise)
        report = quantize_file(
            files.model("float32"),
            out,
            quant_spec,
            DataSpec(name="npz", path=str(samples)),
            warnings=warnings,
            on_stage=on_stage,
        )
        if not report.passed:
            raise ResdeployError(
                f"The {form} model is not good enough: {'; '.join(report.reasons)}.",
                where=files.folder.name,
            )
