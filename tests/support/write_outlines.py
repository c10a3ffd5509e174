"""Write `resdeploy/weights/outlines.json` anew, after an architecture has changed.

python tests/support/write_outlines.py
"""

import dataclasses
import json
from pathlib import Path

from resdeploy.networks import ARCHITECTURES
from resdeploy.weights import outlines
from resdeploy.weights.network_search import outline_of_architecture


def main() -> None:
    """Write one line an architecture."""
    rows = (
        f" {json.dumps(name)}: {json.dumps(dataclasses.asdict(outline_of_architecture(name)))}"
        for name in ARCHITECTURES
    )
    text = "{\n" + ",\n".join(rows) + "\n}\n"
    Path(outlines.__file__).with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
