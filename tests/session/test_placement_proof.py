"""Where a model ran, as a verdict: what may be elsewhere, what may not, what counts as proof."""

import pytest

from resdeploy.session.placement_proof import Kernel, judge_placement

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def kernels(provider, *ops):
    return tuple(Kernel(name=f"{op.lower()}_1", op=op, provider=provider) for op in ops)


OURS = kernels(CUDA, "Conv", "Relu", "Gemm")


def test_everything_where_it_was_asked_for_passes_and_is_counted():
    placement = judge_placement(CUDA, planned=OURS, executed=kernels(CUDA, "FusedConv", "Gemm"))
    assert placement.passed
    assert (placement.planned, placement.executed) == ({CUDA: 3}, {CUDA: 2})
    assert (placement.num_copies, placement.strays) == (0, ())


@pytest.mark.parametrize(
    "op",
    [
        *("Conv", "ConvTranspose", "FusedConv", "Gemm", "FusedGemm", "MatMul", "QLinearConv"),
        *("QLinearMatMul", "Attention", "MaxPool", "GlobalAveragePool", "ReduceMean", "Relu"),
        *("Add", "BatchNormalization", "Cast", "AnOperatorOfNextYear"),
    ],
)
@pytest.mark.parametrize("witness", ["planned", "executed"])
def test_a_single_operator_that_computes_elsewhere_fails_whichever_witness_saw_it(op, witness):
    seen = {"planned": OURS, "executed": OURS}
    seen[witness] = (*OURS, *kernels(CPU, op))
    placement = judge_placement(CUDA, **seen)
    assert not placement.passed
    stray = f"{op.lower()}_1 ({op}) on {CPU}"
    assert placement.strays == (stray,)
    (reason,) = placement.reasons
    assert reason == f"{'planned' if witness == 'planned' else 'ran'} elsewhere: {stray}"


@pytest.mark.parametrize("op", ["Shape", "Gather", "Concat", "Reshape", "Flatten", "Unsqueeze"])
def test_an_operator_that_only_arranges_values_is_reported_and_allowed(op):
    seen = (*OURS, *kernels(CPU, op))
    placement = judge_placement(CUDA, planned=seen, executed=seen)
    assert placement.passed
    assert placement.strays == (f"{op.lower()}_1 ({op}) on {CPU}",)
    assert placement.executed == {CUDA: 3, CPU: 1}


def test_copies_are_counted_and_are_nobodys_work():
    executed = (*OURS, *kernels(CUDA, "MemcpyToHost"), *kernels(CPU, "MemcpyFromHost"))
    placement = judge_placement(CUDA, planned=OURS, executed=executed)
    assert placement.passed
    assert (placement.num_copies, placement.executed, placement.strays) == (2, {CUDA: 3}, ())


def test_a_compiled_subgraph_is_one_kernel():
    (whole,) = kernels("OpenVINOExecutionProvider", "OpenVINOExecutionProvider_17_0")
    planned = kernels("OpenVINOExecutionProvider", "Conv", "Relu", "Gemm")
    placement = judge_placement("OpenVINOExecutionProvider", planned=planned, executed=(whole,))
    assert placement.passed
    assert placement.executed == {"OpenVINOExecutionProvider": 1}


@pytest.mark.parametrize("executed", [(), kernels(CUDA, "MemcpyToHost"), kernels(CPU, "Reshape")])
def test_a_run_without_one_kernel_of_the_provider_proves_nothing(executed):
    placement = judge_placement(CUDA, planned=OURS, executed=executed)
    assert placement.reasons[0] == f"no kernel of {CUDA} ran"


def test_a_runtime_that_keeps_no_plan_is_judged_by_what_ran():
    assert judge_placement(CUDA, planned=None, executed=OURS).planned is None
    assert judge_placement(CUDA, planned=None, executed=OURS).passed
    assert not judge_placement(CUDA, planned=None, executed=kernels(CPU, "Conv")).passed


def test_many_are_named_in_part_and_counted():
    executed = OURS + tuple(Kernel(name=f"n{i}", op="Relu", provider=CPU) for i in range(8))
    placement = judge_placement(CUDA, planned=None, executed=executed)
    assert placement.reasons[0].endswith("n4 (Relu) on CPUExecutionProvider and 3 more")
    assert len(placement.strays) == 8
