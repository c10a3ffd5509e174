#!/usr/bin/env bash
# `make gpu-check` for a GPU host without a network: nothing is downloaded.
#
#     WHEELS=/path/to/wheels benchmarks/cuda/run.sh --minutes 9 -o results
#
# WHEELS is a folder of wheels that were carried along: what the host's Python lacks. They are
# unpacked, once, to SITE (default: .gpu-site in the repository), which comes first on PYTHONPATH.
# Without WHEELS, PYTHONPATH is taken as it is. PYTHON names the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python3}

if [ -n "${WHEELS:-}" ]; then
  shopt -s nullglob
  wheels=("$WHEELS"/*.whl)
  if [ ${#wheels[@]} -eq 0 ]; then
    echo "There are no wheels in $WHEELS." >&2
    exit 2
  fi
  SITE=${SITE:-$PWD/.gpu-site}
  names=$(printf '%s\n' "${wheels[@]##*/}")
  if [ "$(cat "$SITE/.wheels" 2>/dev/null || true)" != "$names" ]; then
    # --no-deps: what the host has, torch above all, is not to be looked for.
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target "$SITE" "${wheels[@]}"
    printf '%s\n' "$names" > "$SITE/.wheels"
  fi
  export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"
fi

"$PYTHON" - <<'CHECK'
import importlib.util
import sys

needed = "click ml_dtypes numpy onnx onnx_ir onnxruntime onnxscript onnxsim PIL rich safetensors torch"
missing = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"Python lacks {', '.join(missing)}: put their wheels into the folder WHEELS.")
CHECK

exec "$PYTHON" -m benchmarks.cuda "$@"
