"""The algebra of the fold and the trace before it, broken on purpose.

Not listed, because breaking them changes nothing that a model could show:

- the finite scale beside the finite shift in `scale_and_shift`: mean * inf is never finite;
- the storage type checked in `apply_edit`: rounding refuses it as well;
- `all_input_nodes.count(...)`: that list holds each node once;
- feature_dropout, alpha_dropout and type_as among the untracked aliases: torch tracks them today.
"""

from mutation import mutations

__all__ = ["MUTATIONS"]


def suite(case: str) -> str:
    return f"tests/host/test_fold_suite.py::test_fold[{case}]"


def trace(test: str) -> str:
    return f"tests/host/test_trace.py::test_{test}"


def algebra(test: str) -> str:
    return f"tests/test_algebra.py::test_{test}"


ALGEBRA = mutations(
    ("algebra.py",),
    (
        "a missing gamma is 1",
        "gamma_C = np.ones_like(mean_C) if bn.gamma is None",
        "gamma_C = np.zeros_like(mean_C) if bn.gamma is None",
        suite("affine_false"),
    ),
    (
        "eps is added to the variance",
        "np.sqrt(var_C + np.longdouble(bn.eps))",
        "np.sqrt(var_C)",
        suite("large_eps"),
    ),
    (
        "the mean is subtracted",
        "shift_C = beta_C - mean_C * scale_C",
        "shift_C = beta_C + mean_C * scale_C",
        suite("conv2d"),
    ),
    (
        "scale and shift are finite",
        "bad = np.flatnonzero(~(np.isfinite(scale_C) & np.isfinite(shift_C)))",
        "bad = np.flatnonzero(~np.isfinite(scale_C))",
        suite("var0_eps0"),
    ),
    (
        "a product's factor stays",
        "out_scale=np.longdouble(factors[0]) * ones",
        "out_scale=ones",
        suite("addmm_alpha_beta_bn1d"),
    ),
    (
        "a bias's factor is taken in",
        "bias=np.longdouble(factors[1]) * np.broadcast_to",
        "bias=np.broadcast_to",
        suite("addmm_alpha_beta_bn1d"),
    ),
    (
        "a map after scales the bias",
        "bias=scale_O * edit.bias + shift_O",
        "bias=edit.bias + shift_O",
        suite("conv2d"),
    ),
    (
        "a map after keeps what was folded",
        "out_scale=scale_O * edit.out_scale",
        "out_scale=scale_O",
        suite("bn_twice"),
    ),
    (
        "a shift before meets the scale folded earlier",
        "inputs_GI = (already_I * shift_I)",
        "inputs_GI = (shift_I)",
        suite("bn_bn_conv"),
    ),
    (
        "a map before keeps what was folded",
        "in_scale=already_I * scale_I",
        "in_scale=scale_I",
        suite("bn_bn_conv"),
    ),
    (
        "a shift before meets what was folded after",
        "bias=edit.bias + edit.out_scale * moved_O",
        "bias=edit.bias + moved_O",
        algebra("maps_before_and_after_leave_the_same_function"),
    ),
    (
        "a shift before stays in its group",
        "taps_OI @ inputs_GI[group]",
        "taps_OI @ inputs_GI[0]",
        suite("bn_then_conv_grouped"),
    ),
    (
        "a shift before meets every tap",
        "weight_OIK[rows].astype(np.float64).sum(axis=2)",
        "weight_OIK[rows].astype(np.float64)[:, :, 0]",
        suite("bn_then_conv_no_padding"),
    ),
    (
        "a scale before is applied",
        "if edit.in_scale is not None:",
        "if False:",
        suite("bn_then_linear"),
    ),
    (
        "a scale before stays in its group",
        "groups = np.arange(rows.start, rows.stop) * shape.groups // num_outputs",
        "groups = np.zeros(rows.stop - rows.start, int)",
        suite("bn_then_conv_grouped"),
    ),
    (
        "each block has its own scales",
        "* scale_O[rows, None, None]",
        "* scale_O[: rows.stop - rows.start, None, None]",
        algebra("a_weight_of_several_blocks_is_folded_as_one"),
    ),
    (
        "distances and flushes of all blocks count",
        "max_ulp, num_flushed = max(max_ulp, ulp), num_flushed + flushed",
        "max_ulp, num_flushed = ulp, flushed",
        algebra("a_weight_of_several_blocks_is_folded_as_one"),
    ),
    (
        "an underflow is told by its channel",
        "first_channel=start)",
        "first_channel=0)",
        algebra("an_underflow_is_told_by_its_channel_in_any_block"),
    ),
    (
        "a flushed bias counts",
        "num_flushed=num_flushed + bias_flushed",
        "num_flushed=num_flushed",
        algebra("subnormal_results_become_zero_and_are_counted"),
    ),
    (
        "a bias's distance counts",
        "max_ulp=max(max_ulp, bias_ulp)",
        "max_ulp=max_ulp",
        algebra("the_distance_of_a_bias_counts"),
    ),
    (
        "float64 is made from more than float64",
        'np.longdouble if dtype == "float64" else np.float64',
        "np.float64",
        algebra("float64_weights_are_rounded_once_where_the_machine_has_more"),
    ),
    (
        "the products are float64",
        "exact: FloatArray = weight_OIK[rows].astype(exact_type) * scale_O[rows, None, None]",
        (
            "exact: FloatArray = (weight_OIK[rows].astype(exact_type) * scale_O[rows, None, None])"
            ".astype(np.float32).astype(exact_type)"
        ),
        algebra("every_folded_value_is_within_half_an_ulp_of_the_exact_one"),
    ),
    (
        "layer and BatchNorm have the same channels",
        "if weight.shape[channel_axis] != bn.mean.shape[0]:",
        "if False:",
        algebra("refuses_channels_that_do_not_match"),
    ),
    (
        "the channel axis is honoured",
        "rows = np.moveaxis(weight, channel_axis, 0)",
        "rows = weight",
        algebra("the_channel_axis_is_honoured"),
    ),
    (
        "bfloat16 is rounded once",
        "_float32_to_bfloat16(_round_to_odd_float32(exact))",
        "_float32_to_bfloat16(exact.astype(np.float32))",
        algebra("bfloat16_does_not_round_twice"),
    ),
    (
        "bfloat16 ties go to even",
        "(bits + 0x7FFF + ((bits >> 16) & 1))",
        "(bits + 0x8000)",
        algebra("bfloat16_does_not_round_twice"),
    ),
    (
        "only an even float32 is made odd",
        "(nearest.view(np.uint32) & 1 == 0)",
        "(nearest.view(np.uint32) & 1 == 1)",
        algebra("bfloat16_does_not_round_twice"),
    ),
    (
        "a transposed weight has its inputs first",
        "return by_group.swapaxes(1, 2).reshape(-1, inputs_per_group, num_taps)",
        "return by_group.reshape(-1, inputs_per_group, num_taps)",
        suite("conv_transpose_equal_channels"),
    ),
    (
        "a transposed weight has its groups on the inputs",
        "by_group = weight.reshape(shape.groups, inputs_per_group, weight.shape[1], -1)",
        "by_group = weight.reshape(1, weight.shape[0], weight.shape[1], -1)",
        suite("conv_transpose_grouped"),
    ),
    (
        "a transposed weight is laid out as it was",
        "np.ascontiguousarray(by_group.swapaxes(1, 2)).reshape(original)",
        "by_group.reshape(original)",
        suite("conv_transpose_equal_channels"),
    ),
    (
        "a channel does not vanish in float16",
        'if dtype != "float16":',
        "if True:",
        suite("half_underflow"),
    ),
    (
        "a dead channel has not vanished",
        "(largest_O > 0) & (largest_O < _FORMATS[dtype][0])",
        "largest_O < _FORMATS[dtype][0]",
        algebra("a_dead_channel_of_float16_has_not_underflowed"),
    ),
    (
        "a folded value does not overflow",
        "if not np.isfinite(stored).all():",
        "if False:",
        algebra("refuses_a_fold_that_overflows_the_storage_type"),
    ),
    (
        "an ulp is never that of a subnormal",
        "return np.maximum(power_of_two, smallest) *",
        "return power_of_two *",
        suite("zero_scales"),
    ),
    (
        "an ulp is that of the type",
        "* 2.0 ** (1 - precision)",
        "* 2.0 ** -precision",
        suite("conv2d"),
    ),
    (
        "subnormals become zero",
        "np.where(subnormal, 0.0, stored) if num_flushed else stored",
        "stored",
        algebra("subnormal_results_become_zero_and_are_counted"),
    ),
    (
        "float16 keeps its subnormals",
        'if dtype == "float16":  # its subnormals',
        "if False:  # its subnormals",
        algebra("float16_keeps_its_subnormals"),
    ),
)

TRACE = mutations(
    ("host/trace.py",),
    (
        "an in-place change that others read is functionalised by torch",
        "only_reader = list(mutated.users) == [node] and",
        "only_reader = True and",
        trace("an_in_place_change_of_a_value_read_again_is_seen"),
    ),
    (
        "a view is not memory of its own",
        "if _schema_name(node) in _FRESH:",
        "if True:",
        trace("an_in_place_change_through_a_view_is_seen"),
    ),
    (
        "a view is as good only if nothing else reads the value",
        "isinstance(first, fx.Node) and list(first.users) == [node] and _is_fresh(first)",
        "isinstance(first, fx.Node) and _is_fresh(first)",
        trace("an_in_place_change_through_a_view_is_seen"),
    ),
    (
        "dropout may return its input",
        'for name in ("dropout", "feature_dropout"',
        'for name in ("feature_dropout"',
        trace("refuses_an_in_place_change_that_torch_loses"),
    ),
    (
        "einsum may return its input",
        '"type_as", "einsum")',
        '"type_as")',
        trace("a_change_through_what_may_be_its_own_input_is_never_lost[einsum]"),
    ),
    (
        "a change that torch would lose is refused",
        "            _refuse_untracked_alias(node)\n",
        "            pass\n",
        trace("refuses_an_in_place_change_that_torch_loses"),
    ),
    (
        "a check of types is no reader",
        "            _drop_metadata_checks(program)\n",
        "",
        suite("cast_to_the_same_type_between"),
    ),
)

MUTATIONS = [*ALGEBRA, *TRACE]
