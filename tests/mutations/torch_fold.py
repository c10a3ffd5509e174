"""The fold of torch modules, and the algebra it shares with that of ONNX files, broken on purpose.

Not listed, because breaking them changes nothing that a model could show:

- the finite scale beside the finite shift in `scale_and_shift`: mean * inf is never finite;
- the storage type checked in `apply_edit`: rounding refuses it as well;
- `all_input_nodes.count(...)`: that list holds each node once;
- the output among the readers in `_targets_in`: it is no layer;
- the factor of a sum in `_into_summands`: s (a + k b) + t is (s a + t) + k (s b), a legal fold;
- a value for each sample in `_spans_batch`: no layer takes a map that differs by sample, and
  arithmetic is not reported;
- constants asked for in `_arithmetic_norm`: `_spans_batch` refuses what is none;
- values that are None in `_evaluate`: the operation itself raises, which is caught;
- feature_dropout, alpha_dropout and type_as among the untracked aliases: torch tracks them today.
"""

from mutation import mutations

__all__ = ["MUTATIONS"]


def suite(case: str) -> str:
    return f"tests/host/test_fold_suite.py::test_fold[{case}]"


def fold(test: str) -> str:
    return f"tests/host/test_fold.py::test_{test}"


def layernorm(test: str) -> str:
    return f"tests/host/test_fold_layernorm.py::test_{test}"


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
        fold("refuses_statistics_without_a_finite_fold"),
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
        fold("subnormal_results_are_flushed_and_counted"),
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
        "by_group = weight.reshape(self.groups, inputs_per_group, weight.shape[1], -1)",
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

LAYERS = mutations(
    ("host/layers.py",),
    (
        "conv_transpose1d is transposed",
        '_Kind("conv_transpose1d", 6, transposed=True)',
        '_Kind("conv_transpose1d", 6)',
        suite("conv_transpose1d"),
    ),
    (
        "conv_transpose2d is transposed",
        '_Kind("conv_transpose2d", 6, transposed=True)',
        '_Kind("conv_transpose2d", 6)',
        suite("conv_transpose_equal_channels"),
    ),
    (
        "conv_transpose3d is transposed",
        '_Kind("conv_transpose3d", 6, transposed=True)',
        '_Kind("conv_transpose3d", 6)',
        suite("conv_transpose3d"),
    ),
    (
        "matmul has its features on the columns",
        '_Kind("matmul", transposed=True, bias_at=None)',
        '_Kind("matmul", bias_at=None)',
        suite("matmul_bn1d"),
    ),
    (
        "mm has its features on the columns",
        '_Kind("mm", transposed=True, bias_at=None)',
        '_Kind("mm", bias_at=None)',
        fold("mm_lays_its_weight_out_by_input"),
    ),
    (
        "addmm has its features on the columns",
        '_Kind("addmm", transposed=True, input_at=1',
        '_Kind("addmm", input_at=1',
        suite("addmm_bn1d"),
    ),
    (
        "a convolution's groups are seen",
        "groups = int(arguments[kind.groups_at])",
        "groups = 1",
        suite("bn_then_conv_grouped"),
    ),
    (
        "a linear layer pads nothing",
        "        if self.is_linear:\n            return False",
        "        if self.is_linear:\n            return True",
        suite("bn_then_linear"),
    ),
    (
        "a transposed convolution has borders",
        "if self.shape.transposed:  # at a border",
        "if False:  # at a border",
        suite("bn_conv_transpose"),
    ),
    (
        "`same` pads a kernel larger than 1",
        "return any(size != 1 for size in kernel)",
        "return False",
        suite("bn_then_conv_same_padding"),
    ),
    (
        "`same` pads no kernel of 1",
        "return any(size != 1 for size in kernel)",
        "return True",
        fold("padding_by_name_pads_nothing_for_a_kernel_of_one"),
    ),
    (
        "`valid` pads nothing",
        'if padding == "valid":',
        "if False:",
        fold("padding_by_name_pads_nothing_for_a_kernel_of_one"),
    ),
    (
        "padding is seen",
        "return any(padding) if isinstance(padding, list | tuple) else bool(padding)",
        "return False",
        suite("bn_then_conv_zero_padding"),
    ),
    (
        "a product becomes a linear layer",
        "self.node.target = aten.linear.default",
        "pass",
        suite("matmul_bn1d"),
    ),
    (
        "a product's factors are spent",
        "(self.input, weight, bias), {}",
        "(self.input, weight, bias), self.node.kwargs",
        suite("addmm_alpha_beta_bn1d"),
    ),
    (
        "stride, padding, dilation and groups stay",
        "(self.input, weight, bias, *self.node.args[3:])",
        "(self.input, weight, bias)",
        suite("conv2d_strided"),
    ),
    (
        "a linear layer has its features on the rows",
        "return weight.T.contiguous() if self.is_linear and self.shape.transposed else weight",
        "return weight",
        suite("matmul_bn1d"),
    ),
    (
        "a product's weight is a matrix",
        "if len(node_shape(weight)) != 2 or not plain_bias:",
        "if not plain_bias:",
        fold("refuses_products_that_are_no_linear_layer"),
    ),
    (
        "a product's bias is a vector",
        "if len(node_shape(weight)) != 2 or not plain_bias:",
        "if len(node_shape(weight)) != 2:",
        fold("refuses_products_that_are_no_linear_layer"),
    ),
    (
        "alpha is seen",
        'product_factor=float(node.kwargs.get("alpha", 1))',
        "product_factor=float(1)",
        suite("addmm_alpha_beta_bn1d"),
    ),
    (
        "beta is seen",
        'bias_factor=float(node.kwargs.get("beta", 1))',
        "bias_factor=float(1)",
        suite("addmm_alpha_beta_bn1d"),
    ),
    (
        "a residual stream is called so",
        "return node.target in (aten.add.Tensor, aten.add_.Tensor)",
        "return False",
        fold("refuses_the_residual_stream"),
    ),
)

PROGRAM = mutations(
    ("host/program.py",),
    (
        "what a call changes is no constant",
        "return target in self._tensors and target not in self._mutated",
        "return target in self._tensors",
        fold("a_weight_that_changes_after_each_call_is_not_a_constant"),
    ),
    (
        "a weight read by others is cloned",
        "if list(node.users) == [reader]:",
        "if True:",
        suite("same_conv_two_batchnorms"),
    ),
    (
        "tied weights are cloned",
        "if list(node.users) == [reader]:",
        "if True:",
        suite("tied_weights"),
    ),
    (
        "parameters that two LayerNorms read are parted",
        "if list(node.users) == [reader]:",
        "if True:",
        layernorm("shared_parameters_are_parted"),
    ),
    (
        "a computed weight becomes a parameter",
        "        if not self.is_constant(node):\n            return self.add",
        "        if False:\n            return self.add",
        suite("weight_standardisation"),
    ),
    (
        "a new parameter takes no name that is in use",
        "if name in self._tensors:",
        "if False:",
        suite("siamese_same_conv_and_bn_twice"),
    ),
    (
        "a buffer that is only written stays",
        " and spec.target not in self._mutated:",
        ":",
        fold("a_buffer_that_is_only_written_stays"),
    ),
    (
        "a constant is computed in float64",
        "return value.double() if is_real else value",
        "return value",
        fold("a_computed_weight_is_rounded_once"),
    ),
    (
        "what is random is no constant",
        'return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())',
        "return True",
        fold("a_random_weight_is_not_a_constant"),
    ),
    (
        "a replaced output is still an output",
        "dataclasses.replace(spec, arg=TensorArgument(node.name))",
        "spec",
        suite("conv2d"),
    ),
)

TRACE = mutations(
    ("host/trace.py",),
    (
        "an in-place change that others read is functionalised by torch",
        "only_reader = list(mutated.users) == [node] and",
        "only_reader = True and",
        fold("an_in_place_change_of_a_value_read_again_is_seen"),
    ),
    (
        "an in-place change of a buffer is functionalised by torch",
        "return twin if _is_fresh(mutated) and only_reader and same_arguments else None",
        "return twin if only_reader and same_arguments else None",
        suite("weight_that_changes_at_each_call"),
    ),
    (
        "a view is not memory of its own",
        "if _schema_name(node) in _FRESH:",
        "if True:",
        fold("an_in_place_change_through_a_view_is_seen"),
    ),
    (
        "a view is as good only if nothing else reads the value",
        "isinstance(first, fx.Node) and list(first.users) == [node] and _is_fresh(first)",
        "isinstance(first, fx.Node) and _is_fresh(first)",
        fold("an_in_place_change_through_a_view_is_seen"),
    ),
    (
        "dropout may return its input",
        'for name in ("dropout", "feature_dropout"',
        'for name in ("feature_dropout"',
        fold("refuses_an_in_place_change_that_torch_loses"),
    ),
    (
        "einsum may return its input",
        '"type_as", "einsum")',
        '"type_as")',
        fold("a_change_through_what_may_be_its_own_input_is_never_lost[einsum]"),
    ),
    (
        "a change that torch would lose is refused",
        "            _refuse_untracked_alias(node)\n",
        "            pass\n",
        fold("refuses_an_in_place_change_that_torch_loses"),
    ),
    (
        "a check of types is no reader",
        "            _drop_metadata_checks(program)\n",
        "",
        suite("cast_to_the_same_type_between"),
    ),
)

FLOW = mutations(
    ("host/affine_flow.py", "affine_map.py"),
    (
        "upwards, no other reader sees the change",
        "reason = _read_elsewhere(value)",
        "reason = None",
        suite("conv_two_readers"),
    ),
    (
        "a value with two readers is read elsewhere",
        'if len(value.users) == 1 or value.op == "placeholder":',
        "if True:",
        suite("conv_read_by_two_batchnorms"),
    ),
    (
        "an output is read elsewhere, and called so",
        'if any(user.op == "output" for user in value.users):',
        "if False:",
        fold("refuses_a_convolution_that_is_an_output"),
    ),
    (
        "a constant with a factor is not taken in as it is",
        "if not (is_sum or is_product) or value.kwargs:",
        "if not (is_sum or is_product):",
        fold("a_factor_of_a_sum_is_seen"),
    ),
    (
        "a constant of higher rank moves the axes",
        "if len(shape) != rank or array.ndim > rank or",
        "if array.ndim > rank or",
        fold("a_constant_of_higher_rank_moves_the_axes"),
    ),
    (
        "a constant for each sample is not taken in",
        "return array if fits and array.shape[0] == 1 else None",
        "return array if fits else None",
        "tests/test_affine_map.py::test_no_constant_that_does_more_than_a_map",
    ),
    (
        "a constant that is taken in is finite",
        "if len(shape) != rank or array.ndim > rank or not np.isfinite(array).all():",
        "if len(shape) != rank or array.ndim > rank:",
        fold("refuses_a_constant_that_is_not_finite"),
    ),
    (
        "a difference takes the constant away",
        "sign = -1 if value.target is aten.sub.Tensor else 1",
        "sign = 1",
        fold("takes_in_arithmetic_with_a_constant"),
    ),
    (
        "a constant sum meets the scale",
        "affine.scale * (sign * array) + affine.shift",
        "sign * array + affine.shift",
        suite("channel_constant_added_between"),
    ),
    (
        "nothing is divided by zero",
        "if array is None or (divide and (array == 0).any()):",
        "if array is None:",
        fold("refuses_division_by_zero"),
    ),
    (
        "a quotient divides",
        "affine.scale * (1 / array if divide else array)",
        "affine.scale * array",
        fold("takes_in_arithmetic_with_a_constant"),
    ),
    (
        "a value is not joined with itself",
        "if len(set(parts)) != len(parts):",
        "if False:",
        fold("refuses_a_value_joined_with_itself"),
    ),
    (
        "each part of a concatenation takes its own channels",
        "start += length",
        "pass",
        suite("cat_of_two_convs"),
    ),
    (
        "a value is not added to itself",
        "if not plain or first is second:",
        "if not plain:",
        fold("a_value_added_to_itself_is_not_scaled_twice"),
    ),
    (
        "summands have one shape",
        "if list(map(str, node_shape(first))) != list(map(str, node_shape(second))):",
        "if False:",
        fold("refuses_a_sum_of_values_of_different_shapes"),
    ),
    (
        "one summand takes the shift",
        "(second, affine.without_shift())",
        "(second, affine)",
        suite("add_of_two_convs"),
    ),
    (
        "upwards, axes move back",
        "np.argsort(_permutation(value, len(node_shape(source)))).tolist()",
        "_permutation(value, len(node_shape(source)))",
        suite("linear_permute_rank4_bn2d"),
    ),
    (
        "downwards, axes move on",
        "through = permute(affine, _permutation(reader, affine.rank))",
        "through = permute(affine, np.argsort(_permutation(reader, affine.rank)).tolist())",
        fold("follows_axes_downwards_in_their_order"),
    ),
    (
        "shuffled channels move back",
        "order = np.argsort(_shuffled_channels(value, source))",
        "order = _shuffled_channels(value, source)",
        suite("channel_shuffle_between"),
    ),
    (
        "upwards, the map is the same within a window",
        "return flatten_axes(affine, range(2, affine.rank))",
        "return affine",
        fold("a_map_that_varies_within_a_window_does_not_cross_pooling"),
    ),
    (
        "downwards, the map is the same within a window",
        "through = flatten_axes(affine, range(2, affine.rank))",
        "through = affine",
        fold("a_map_that_varies_within_a_window_does_not_cross_pooling"),
    ),
    (
        "no negative scale crosses max pooling",
        "return bool((affine.scale >= 0).all())",
        "return True",
        suite("maxpool_between_a_negative_scale"),
    ),
    (
        "a scale of zero crosses max pooling",
        "return bool((affine.scale >= 0).all())",
        "return bool((affine.scale > 0).all())",
        fold("max_pooling_lets_a_scale_of_zero_pass"),
    ),
    (
        "an average counts no padding",
        "return divisor is None and not (counts_padding and any(padding))",
        "return divisor is None",
        suite("avgpool_padded_counting_zeros"),
    ),
    (
        "an average that does not count padding is one",
        "return divisor is None and not (counts_padding and any(padding))",
        "return divisor is None and not any(padding)",
        suite("avgpool_padded_not_counting_zeros"),
    ),
    (
        "an average divides by its window",
        "return divisor is None and not (counts_padding and any(padding))",
        "return not (counts_padding and any(padding))",
        fold("an_average_with_a_divisor_of_its_own_is_none"),
    ),
    (
        "padding is counted unless said otherwise",
        "counts_padding = arguments[5] if len(arguments) > 5 else True",
        "counts_padding = arguments[5] if len(arguments) > 5 else False",
        suite("avgpool_padded_counting_zeros"),
    ),
    (
        "a slice begins where it begins",
        "np.arange(length)[slice(start, end, step)]",
        "np.arange(length)[slice(0, end - start, step)]",
        suite("channel_slice_between"),
    ),
    (
        "downwards, each reader takes in the map",
        "for reader in readers:",
        "for reader in readers[:1]:",
        suite("bn_then_two_convs"),
    ),
    (
        "downwards, no reader that cannot sees the change",
        "found = _targets_in(reader, value, affine)",
        "found = [t for t in _targets_in(reader, value, affine) if isinstance(t, Target)]",
        suite("bn_then_two_convs_one_of_them_padded"),
    ),
    (
        "downwards, the layer reads the value as its input",
        "if layer is not None and layer.input is value:",
        "if layer is not None:",
        fold("a_batchnorm_that_makes_a_weight_is_not_folded_into_its_reader"),
    ),
    (
        "no shift meets zero padding",
        "if layer.pads_with_zeros and (affine.shift != 0).any():",
        "if False:",
        suite("bn_then_conv_zero_padding"),
    ),
    (
        "a shift of zero meets zero padding",
        "if layer.pads_with_zeros and (affine.shift != 0).any():",
        "if layer.pads_with_zeros:",
        suite("bn_then_conv_zero_shift"),
    ),
    (
        "padding with a constant is no repetition",
        '("reflect", "replicate", "circular")',
        '("reflect", "replicate", "circular", "constant")',
        suite("zero_pad_between"),
    ),
    (
        "dropout in training does something",
        "return node.args[2] is False",
        "return True",
        suite("dropout_train_between"),
    ),
    (
        "a cast to another type does something",
        'source.meta["val"].dtype == node.meta["val"].dtype',
        "True",
        suite("half_conv_cast_to_float_before_bn"),
    ),
    (
        "a clone does nothing",
        "_NOTHING = {aten.clone.default, ",
        "_NOTHING = {",
        suite("clone_between"),
    ),
    (
        "a linear layer has its features on the last axis",
        "axis = affine.rank - 1 if layer.is_linear else 1",
        "axis = 1",
        suite("linear_rank3_L_equals_C"),
    ),
    (
        "a layer takes a map per channel",
        "if (affine.scale != first.scale).any() or (affine.shift != first.shift).any():",
        "if False:",
        suite("transpose_of_channel_and_height_between"),
    ),
    (
        "a shift per position is no map per channel",
        "if (affine.scale != first.scale).any() or (affine.shift != first.shift).any():",
        "if (affine.scale != first.scale).any():",
        fold("refuses_a_shift_that_differs_between_positions"),
    ),
    (
        "a view that moves channels into the batch is not crossed",
        "flat = flatten_axes(affine, range(lead, end))",
        "flat = affine",
        fold("refuses_channels_moved_into_the_batch"),
    ),
    (
        "a view of each sample keeps the batch",
        "and 0 < math.prod(rest) == math.prod(wanted_rest):",
        ":",
        suite("linear_flatten01_bn1d"),
    ),
    (
        "pixel shuffle repeats each channel",
        "else np.repeat(array, blocks, 1)",
        "else np.tile(array, (1, blocks, 1, 1))",
        suite("pixel_shuffle_between"),
    ),
)

FOLD = mutations(
    ("host/fold.py",),
    (
        "a BatchNorm in training mode is refused",
        "    elif training:  # 1",
        "    elif False:  # 1",
        suite("functional_batch_norm_in_training"),
    ),
    (
        "a BatchNorm without statistics is refused",
        "if mean is None or var is None:  # 1",
        "if False:  # 1",
        fold("refuses_a_batchnorm_without_running_statistics"),
    ),
    (
        "an InstanceNorm without statistics is none",
        "if uses_input or mean is None:",
        "if False:",
        suite("instance_norm_without_running_stats"),
    ),
    (
        "what was refused at sight stays refused",
        "if norm.refusal is not None:  # 1",
        "if False:  # 1",
        suite("no_running_stats"),
    ),
    (
        "parameters computed at run time are refused",
        "if any(self.editor.constant(node) is None for node in norm.constants):  # 2",
        "if False:  # 2",
        suite("batchnorm_parameter_from_input"),
    ),
    (
        "a weight computed at run time is refused",
        "except _RunTimeWeightError as error:  # 4",
        "except ZeroDivisionError as error:  # 4",
        suite("weight_from_input"),
    ),
    (
        "a fold that is not finite is refused",
        "except algebra.NonFiniteFoldError as error:  # 5",
        "except ZeroDivisionError as error:  # 5",
        suite("nan_statistics"),
    ),
    (
        "eps is the BatchNorm's own",
        "mean=mean, var=var, eps=norm.eps",
        "mean=mean, var=var, eps=1e-5",
        suite("large_eps"),
    ),
    (
        "arithmetic with a factor is no frozen BatchNorm",
        "if node.target is not aten.add.Tensor or node.kwargs:",
        "if node.target is not aten.add.Tensor:",
        fold("a_factor_of_a_sum_is_seen"),
    ),
    (
        "a product read elsewhere is no frozen BatchNorm",
        "or not isinstance(scale, fx.Node) or len(product.users) != 1:",
        "or not isinstance(scale, fx.Node):",
        fold("a_product_read_twice_is_no_frozen_batchnorm"),
    ),
    (
        "a norm reads what stands there now",
        "norm = replace(norm, input=_current_input(norm))",
        "pass",
        suite("bn_twice"),
    ),
    (
        "a folded norm is no reader",
        "        self.editor.erase_unused(norm.result)\n",
        "",
        suite("bn_twice"),
    ),
    (
        "what was taken in is gone",
        "        for node in absorbed:\n",
        "        for node in ():\n",
        suite("channel_constant_added_between"),
    ),
    (
        "what was taken in on two ways is gone once",
        "absorbed = dict.fromkeys(node for target in targets for node in target.absorbed)",
        "absorbed = [node for target in targets for node in target.absorbed]",
        fold("a_constant_before_a_part_in_two_is_taken_in_once"),
    ),
    (
        "a second fold goes on from the first",
        "if layer.node in self._layers:",
        "if False:",
        suite("bn_twice"),
    ),
    (
        "before is not after",
        'if target.side == "after":',
        "if True:",
        suite("bn_then_linear"),
    ),
    (
        "weights are rounded to their own type",
        'dtype = str(layer.weight.meta["val"].dtype).removeprefix("torch.")',
        'dtype = "float32"',
        suite("half_weight_overflow"),
    ),
    (
        "a refused norm is tried again",
        "if len(refused) == len(waiting):",
        "if True:",
        suite("bn_bn_conv"),
    ),
    (
        "weights per call are not given as a state dict",
        "if clones:",
        "if False:",
        fold("a_layer_called_twice_gets_weights_for_each_call"),
    ),
)

LAYERNORM = mutations(
    ("host/fold.py",),
    (
        "a LayerNorm is folded on request",
        "if layernorm:\n        found +=",
        "if True:\n        found +=",
        layernorm("it_is_left_alone_unless_asked_for"),
    ),
    (
        "a LayerNorm without an affine part is no site",
        "if does_nothing:",
        "if False:",
        layernorm("one_without_an_affine_part_is_no_site"),
    ),
    (
        "a LayerNorm of scale 1 may have a shift",
        "for c, neutral in ((gamma, 1), (beta, 0))",
        "for c, neutral in ((gamma, 1),)",
        layernorm("one_whose_scale_is_one_has_a_shift_to_fold"),
    ),
    (
        "whether a LayerNorm does something is asked of constants",
        "((value := editor.constant(c)) is not None and bool((value == neutral).all()))",
        "bool((editor.constant(c) == neutral).all())",
        layernorm("one_whose_scale_is_computed_is_refused"),
    ),
    (
        "a LayerNorm does not go up",
        "if norm.is_layer_norm\n                else targets_above(",
        "if False\n                else targets_above(",
        layernorm("it_does_not_go_up"),
    ),
    (
        "a LayerNorm stays",
        "if norm.is_layer_norm:\n            return True",
        "if False:\n            return True",
        layernorm("it_goes_into_the_linear_layer_after_it"),
    ),
    (
        "a LayerNorm that was folded is plain",
        "if norm.is_layer_norm:\n                self._make_plain(norm)",
        "if False:\n                self._make_plain(norm)",
        layernorm("it_goes_into_the_linear_layer_after_it"),
    ),
    (
        "a plain LayerNorm shifts by zero",
        "zip((2, 3), norm.statistics, (1.0, 0.0), strict=True)",
        "zip((2, 3), norm.statistics, (1.0, 1.0), strict=True)",
        layernorm("it_goes_into_the_linear_layer_after_it"),
    ),
    (
        "a LayerNorm without a bias shifts nothing",
        "shift = np.zeros(1) if bias is None",
        "shift = np.ones(1) if bias is None",
        layernorm("it_goes_into_the_linear_layer_after_it"),
    ),
)

MUTATIONS = [*ALGEBRA, *LAYERS, *PROGRAM, *TRACE, *FLOW, *FOLD, *LAYERNORM]
