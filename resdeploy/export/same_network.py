"""A trained model held against an open session by its shapes, after one run of one sample."""

import torch

from resdeploy.export.signature import bind
from resdeploy.export.source import SourceModel, example_samples
from resdeploy.session.session import Session, input_specs, output_specs
from resdeploy.verify.same_shapes import refuse_other_shapes

__all__ = ["refuse_another_network"]


def refuse_another_network(session: Session, source: SourceModel) -> None:
    """Refuse a trained model whose inputs or output have other shapes than the session's.

    Raises:
        ResdeployError: they have; the message has both.
    """
    found = [one.shape for one in input_specs(session)]
    if source.preprocess is not None and source.preprocess.embedded:
        expected = [(1, *source.input_shape)]
        refuse_other_shapes("input", found, expected, reference=source.description)
        return  # the network behind the preprocessing takes no pixels
    samples = example_samples(source, batch_size=1)
    by_place, by_name = bind(source.module, samples, torch.float32)
    shapes = [tuple(one.shape) for one in (*by_place, *by_name.values())]
    refuse_other_shapes("input", found, shapes, reference=source.description)
    try:
        with torch.inference_mode():
            output = source.module(*by_place, **by_name)
    except Exception:  # the run of the reference says what is wrong with it
        return
    if isinstance(output, torch.Tensor):
        found = [one.shape for one in output_specs(session)]
        refuse_other_shapes("output", found, [tuple(output.shape)], reference=source.description)
