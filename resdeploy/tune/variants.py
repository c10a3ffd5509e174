"""Lower precisions of a bundle's model that `tune` makes itself, as `quantize` does.

The report goes with the file. Needs no torch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from resdeploy.bundle.folder import BundleFolder
from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_write
from resdeploy.quant.calibration_data import load_calibration
from resdeploy.quant.gate import DEFAULT_FRACTION
from resdeploy.quant.quantize import quantize_file, spec_for, types_for
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.quants import QuantizedPrecision, QuantReport, QuantSpec
from resdeploy.schema.recipes import DataSpec
from resdeploy.schema.tunings import TuneSpec
from resdeploy.session.providers import find_provider
from resdeploy.tune.space import Variant

__all__ = ["make_variants", "precisions_for"]

_SHORT_NAMES = {"int8": "int8", "float16": "fp16", "bfloat16": "bf16"}


def precisions_for(providers: Sequence[str]) -> tuple[QuantizedPrecision, ...]:
    """Return the lower precisions that are worth making for a search on these providers."""
    # Other providers may widen float16 to float32 first: nothing is gained there.
    computed = any(find_provider(name).computes_float16 for name in providers)
    return ("int8", "float16") if computed else ("int8",)


def make_variants(
    bundle: BundleFolder,
    folder: Path,
    spec: TuneSpec,
    data: DataSpec,
    *,
    precisions: Sequence[QuantizedPrecision],
    on_stage: Callable[[str], None] = lambda stage: None,
) -> list[Variant]:
    """Return lower precisions of a bundle's model, each a file in `folder` or refused.

    `folder` is for them alone; files of an earlier call for the same search are not made again.
    `on_stage` is called with the name of each stage.

    Raises:
        ResdeployError: the data is missing or unfit.
    """
    # Before anything is made: a fault of the data concerns every precision.
    load_calibration(data, bundle.manifest.preprocess)
    return [_made(bundle, folder, spec, data, precision, on_stage) for precision in precisions]


def _made(
    bundle: BundleFolder,
    folder: Path,
    spec: TuneSpec,
    data: DataSpec,
    precision: QuantizedPrecision,
    on_stage: Callable[[str], None],
) -> Variant:
    name = _SHORT_NAMES[precision]
    path, record = folder / f"{name}.onnx", folder / f"{name}.json"
    # Of more changed predictions than the accuracy may fall by, the judge of the search decides.
    max_flips = max(DEFAULT_FRACTION, spec.max_drop or 0)
    asked, warnings = spec_for(
        QuantSpec(precision=precision, max_flips=max_flips),
        types=types_for(spec.providers),
        reduce_range=None,
        target=None,
    )
    report = None
    if record.is_file():
        report = load_json(QuantReport, record.read_bytes(), where=str(record))
    if report is None or report.spec != asked:
        try:
            report = quantize_file(
                bundle.model,
                path,
                asked,
                data,
                preprocess=bundle.manifest.preprocess,
                warnings=warnings,
                force=True,  # a file without its record is of a call that was stopped
                on_stage=lambda stage: on_stage(f"make {name}: {stage}"),
            )
        except ResdeployError as error:
            return Variant(path=path, precision=precision, refused=f"not made: {error.what}")
        with atomic_write(record, force=True) as temporary:
            temporary.write_text(dump_json(report), encoding="utf-8")
    # What too few samples do not show, the judge of the search measures anyway.
    refused = f"not made: {report.failures[0]}" if report.failures else None
    return Variant(path=path, precision=precision, quant=report, refused=refused)
