"""One ResNet-50 in the wrappings people have it in, each exported and verified with no option.

FOLDER holds them: state dicts, training files of Lightning, timm, torchvision and others,
TorchScript, safetensors, and folders of transformers and timm, with one pickled module, which is
to be refused with its way out.

    python benchmarks/models/sixteen.py FOLDER --json benchmarks/models/sixteen.json

Interrupted, it goes on where it was: inputs that stand in the JSON are not judged again, unless
named: --input ddp.pth judges that one alone.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json
from resdeploy.weights.foreign_file import is_weights_folder

SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".safetensors", ".bin", ".th", ".pkl")
COMMAND = "import sys; from resdeploy.cli import main; sys.exit(main())"
VERDICTS = ("PROVED", "AGREES", "FAIL")


def inputs_in(folder: Path) -> list[Path]:
    """Return the files and folders of weights in a folder."""
    return [
        path
        for path in sorted(folder.iterdir())
        if (is_weights_folder(path) if path.is_dir() else path.suffix in SUFFIXES)
    ]


def run(*arguments: str | Path) -> tuple[int, list[str]]:
    """Return the exit code of a command, and the lines that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def outcome(source: Path, model: Path) -> dict[str, Any]:
    """Return the verdict on an input and the notes of its export, or the refusal."""
    code, lines = run("export", source, "-o", model, "--force")
    text = [line.replace(str(source.parent), "FOLDER") for line in lines if line.strip()]
    if code:
        return {"outcome": "refused", "export_exit_code": code, "said": text}
    verify_code, judged = run(
        *("verify", model, "--reference", source, "--num-inputs", "2", "--no-conformance")
    )
    verdicts = [word for word in VERDICTS if any(word in line.split() for line in judged)]
    return {
        "outcome": verdicts[0] if len(verdicts) == 1 else "unclear",
        "export_exit_code": code,
        "verify_exit_code": verify_code,
        "said": notes_in(text),
    }


def notes_in(lines: Sequence[str]) -> list[str]:
    """Return what an export found in an input, which it says before it folds."""
    return [*itertools.takewhile(lambda line: not line.startswith("fold "), lines)]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
@click.option("--input", "named", multiple=True, help="Judge this one alone; repeatable.")
def main(folder: Path, json_path: Path, named: tuple[str, ...]) -> None:
    """Judge every input in FOLDER."""
    environment = to_json(read_environment())
    judged = json.loads(json_path.read_text())["inputs"] if json_path.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for source in inputs_in(folder):
            name = source.name
            if name not in named if named else name in judged:
                continue
            begun = time.perf_counter()
            judged[name] = outcome(source, Path(scratch) / "m.onnx")
            counts = Counter(one["outcome"] for one in judged.values())
            record = {"environment": environment, "counts": counts, "inputs": judged}
            json_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            click.echo(f"{name}: {judged[name]['outcome']} {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
