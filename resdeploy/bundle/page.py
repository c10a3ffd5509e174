"""The README.md inside a bundle, for a user without any other page."""

from resdeploy import __version__
from resdeploy.data.preprocess import kind_for
from resdeploy.schema.bundles import Manifest
from resdeploy.schema.files import MANIFEST, TensorSpec
from resdeploy.schema.recipes import Preprocess

__all__ = ["readme_text"]


def readme_text(manifest: Manifest) -> str:
    """Return the page: commands to check, predict and time; the files, inputs and outputs."""
    files = [
        ("model.onnx", "the network, for ONNX Runtime or any other ONNX runtime"),
        ("golden.npz", "inputs, the outputs they must give (float64), and the noise to judge by"),
        *(
            [("labels.txt", "the class names, in the order of the outputs")]
            if manifest.num_labels
            else []
        ),
        (MANIFEST, "every file by size and SHA-256, and how the model was made"),
    ]
    lines = [
        f"# {manifest.name}",
        "",
        "A model, and the proof that it computes here what it computed where it was made.",
        *(_OWN_REFERENCE if manifest.is_own_reference else ()),
        "",
        "## In this folder",
        "",
        "    # the wheel of resdeploy; no torch; ONNX Runtime 1.18 or newer",
        f'    pip install "resdeploy-{__version__}-py3-none-any.whl[cpu]"',
        "    resdeploy check .                    # every byte, then the numbers on this machine",
        f"    resdeploy predict . {_example(manifest)}",
        "    resdeploy bench model.onnx           # latency and throughput on this machine",
        "    resdeploy doctor                     # if something does not run: what, and the fix",
        "",
        "`check` exits with 0 if all is well, 1 if the numbers differ, 2 if a file changed, and",
        "3 if this machine lacks something. Add nothing to this folder: that is a change, too.",
        "",
        "| file | what |",
        "|---|---|",
        *(f"| `{file}` | {what} |" for file, what in files),
        "",
        "## Inputs and outputs",
        "",
        *_tensor_lines("input", manifest.inputs),
        *_tensor_lines("output", manifest.outputs),
        "",
        "## Preprocessing",
        "",
        *_preprocess_lines(manifest.preprocess),
    ]
    return "\n".join(lines) + "\n"


_OWN_REFERENCE = (
    "The reference is the file itself, in float64: whether it is the network that was trained was",
    "not shown.",
)


def _example(manifest: Manifest) -> str:
    """Return an example input of this model, and the output of the command."""
    preprocess = manifest.preprocess
    if len(manifest.inputs) > 1:
        return "x.npz            # the likeliest classes; an array for each input, by its name"
    if preprocess is None:
        return "x.npy            # the likeliest classes; float32 network inputs"
    if preprocess.color == "none":
        return "x.npy            # the likeliest classes; raw vectors, one a row"
    return "photo.jpg        # the likeliest classes; several images or folders, too"


def _tensor_lines(role: str, tensors: tuple[TensorSpec, ...]) -> list[str]:
    return [f"- {role} `{t.name}`: {t.dtype}, {' x '.join(map(str, t.shape))}" for t in tensors]


def _preprocess_lines(preprocess: Preprocess | None) -> list[str]:
    if preprocess is None:
        return ["Not recorded: feed the model what it was trained on."]
    kind = kind_for(preprocess)
    notice = f"Part of the model, which takes pixels: {kind.layout}. For the record:"
    noun, order = ("image", ", channels first") if kind.is_raw else ("sample", "")
    if preprocess.layout == "NHWC":
        noun, order = "image", ", channels first; fed to the model with its channels last"
    size = " x ".join(map(str, preprocess.input_shape))
    lines = [
        *([notice, ""] if kind.is_raw else []),
        "    x = (raw / divisor - mean) / std        per channel",
        "",
        f"- divisor: {preprocess.divisor}",
        f"- mean: {', '.join(map(str, preprocess.mean))}",
        f"- std: {', '.join(map(str, preprocess.std))}",
        f"- shape of one {noun}: {size}{order}",
    ]
    if preprocess.color != "none":
        how = (
            "scaled straight to that size"
            if preprocess.resize is None
            else f"shorter side scaled to {preprocess.resize} pixels, then the centre cut out"
        )
        lines.append(
            f"- image: {preprocess.color}, {how} ({preprocess.interpolation}, antialiased)"
        )
    return lines
