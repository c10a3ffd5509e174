"""Right files of many writers are the reference, operator by operator and number by number."""

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from writers import NETWORKS, WRITERS, source_of, torchs

from resdeploy.export.golden import golden_for
from resdeploy.export.reference import reference_graph
from resdeploy.verify.certify import certify_file

# What a writer cannot write, or writes as another network.
UNWRITTEN = {
    ("bilinear", "torchscript 9"),  # of another convention, as it warns
    ("bilinear to size", "torchscript 9"),
}


@functools.cache
def reference(network):
    source = source_of(network)
    return reference_graph(source, golden_for(source, num_inputs=4, in_detail=False))


def judge(network, model):
    candidate = certify_file(model, reference(network))
    assert candidate.missing == {}
    assert candidate.structure.differences == ()
    assert candidate.static.reasons == ()


FEW = ("resnet block", "attention")


@pytest.mark.parametrize("writer", ["resdeploy 17", "dynamo 18", "torchscript 17", "onnxsim"])
@pytest.mark.parametrize("network", FEW)
def test_a_right_file_is_the_reference(network, writer):
    judge(network, WRITERS[writer](source_of(network)))


@pytest.mark.parametrize("network", ["mlp batchnorm", "gelu"])
def test_a_file_that_the_runtime_optimised_is_the_reference(network):
    model = WRITERS["runtime extended"](source_of(network))
    judge(network, model)


@pytest.mark.parametrize("network", ["resnet block", "own attention"])
def test_a_wrong_number_anywhere_is_seen(network):
    right = WRITERS["torchscript 17"](source_of(network))
    judge(network, right)
    for k, tensor in enumerate(right.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        wrong = onnx.ModelProto()
        wrong.CopyFrom(right)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[array.size // 2] += np.float32(1e-3)
        wrong.graph.initializer[k].CopyFrom(numpy_helper.from_array(array, tensor.name))
        candidate = certify_file(wrong, reference(network))
        assert candidate.static is None or candidate.static.reasons or candidate.missing


@pytest.mark.parametrize("network", ["resnet block", "bilinear"])
def test_open_sides_are_compared_for_every_size(network):
    open_sides = torchs(17, dynamo=False, axes=(0, 2, 3))(source_of(network))
    judge(network, open_sides)
    fixed = torchs(17, dynamo=False, axes=())(source_of(network))
    judge(network, fixed)


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_right_file_is_the_reference(network, writer):
    if (network, writer) in UNWRITTEN:
        pytest.skip("another network")
    try:
        model = WRITERS[writer](source_of(network))
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        pytest.skip(f"{type(error).__name__}: it is not written")
    judge(network, model)
