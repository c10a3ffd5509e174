"""From a trained ResNet to a model you can prove on the device.

ONNX Runtime reads `ORT_DISABLE_TELEMETRY` once, at its import. It is set here, whatever it was:
every module of resdeploy runs after this one, and child processes inherit it.
"""

import os

__all__ = ["__version__"]

__version__ = "0.1.0"

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
