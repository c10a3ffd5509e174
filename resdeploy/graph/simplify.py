"""Let onnxsim fold constants and drop what nothing needs.

Before:  Shape -> Gather -> Concat -> Reshape chains, constants computed at run time
After:   the layers of the network

Its own BatchNorm fold is switched off: it works in float32 and reports no refusals, and what
resdeploy refused must stay refused.
"""

import onnx_ir as ir

from resdeploy.errors import UnsupportedModelError
from resdeploy.schema import PassReport

__all__ = ["simplify"]


def simplify(model: ir.Model) -> tuple[ir.Model, PassReport]:
    """Return the simplified model, a new one.

    Raises:
        UnsupportedModelError: onnxsim rejects the graph.
    """
    # It imports torch and onnxruntime where they are installed, which this layer does without.
    import onnxsim  # noqa: PLC0415

    num_before = model.graph.num_nodes()
    try:
        simplified, _ = onnxsim.simplify(ir.to_proto(model), skip_fuse_bn=True)
    except Exception as error:  # a C++ extension: what it raises has no common base
        raise UnsupportedModelError(f"onnxsim cannot simplify the graph: {error}") from error
    result = ir.from_proto(simplified)
    num_removed = num_before - result.graph.num_nodes()
    return result, PassReport(name="simplify", num_changed=num_removed)
