"""A model in ONNX Runtime's own format, for builds that read nothing else.

::

    FOLDER/model.ort
    FOLDER/model.required_operators.config    for a build with these operators only

Made by onnxruntime's own converter, and kept only if its outputs pass against the golden file.
"""

import importlib
import shutil
import warnings
from pathlib import Path

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.files import atomic_directory
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.runtime import captured_output
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.outputs import judge_outputs

__all__ = ["write_ort_format"]


def write_ort_format(out: Path, *, model: Path, golden: Golden, force: bool = False) -> None:
    """Write `model` in ORT format, with the list of the operators that it needs.

    Raises:
        UnsupportedModelError: it cannot be converted.
        ResdeployError: the converted model fails against `golden`; or `out` exists or cannot be
            written.
    """
    tools = importlib.import_module("onnxruntime.tools.convert_onnx_models_to_ort")
    with atomic_directory(out, force=force, marker="model.ort") as folder:
        source = folder / "model.onnx"
        shutil.copyfile(model, source)
        try:
            with captured_output(), warnings.catch_warnings():
                # The converter leaves a file to the garbage collector.
                warnings.simplefilter("ignore", ResourceWarning)
                # Not "Runtime", which leaves optimisations to a target that may lack them.
                tools.convert_onnx_models_to_ort(
                    source, output_dir=folder, optimization_styles=[tools.OptimizationStyle.Fixed]
                )
        except Exception as error:  # the converter's errors have no common base
            raise UnsupportedModelError(
                f"onnxruntime cannot convert the model: {error}",
                fix="ship the ONNX file, or use another version of onnxruntime",
            ) from error
        source.unlink()
        config = folder / "model.required_operators.config"
        # Its comment names the folders of this machine.
        lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith("#"))
        config.write_text(text, encoding="utf-8", newline="\n")
        report = judge_outputs(folder / "model.ort", golden, [SessionSpec(provider="cpu")])
        if not report.passed:
            raise ResdeployError(
                "The model in ORT format does not compute what the golden file says.",
                where=str(out),
                fix="ship the ONNX file, or use another version of onnxruntime",
            )
