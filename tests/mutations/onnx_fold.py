"""The fold of ONNX files, broken on purpose.

Not listed, because breaking them changes nothing that a model could show:

- the Mul without a constant in `_frozen_product`: its operand is refused as a parameter computed at
  run time, and arithmetic is not reported;
- the frozen BatchNorm that is gone in `_Folder.fold`: no constants are left to it, and arithmetic
  is not reported;
- where the scales of a Resize stand: without them, the inferred shapes tell which axes change;
- unknown lengths in `_lengths`: shape inference gives each a name of its own;
- the empty name in `optional_input`: onnx_ir reads it as no input;
- the sparse Constant in `_constant`: onnx_ir reads no file that has one;
- the attributes left to a caller in `_with_constant`: since opset 7 sums and products have none;
- the map that must not vary in `_before_mean`: the value has length 1 along the axes averaged over;
- the lengths known so far in `_into_parts`: where one is unknown, the part itself stops the map.
"""

from mutation import mutations

__all__ = ["MUTATIONS"]


def fold(test: str) -> str:
    return f"tests/graph/test_fold_batchnorm.py::test_{test}"


def flow(test: str) -> str:
    return f"tests/graph/test_affine_flow.py::test_{test}"


# What it shares with the fold of torch modules and only its tests reach.
AFFINE_MAP = mutations(
    ("affine_map.py",),
    (
        "a constant has no more axes than the value",
        "if len(shape) != rank or array.ndim > rank or",
        "if len(shape) != rank or",
        "tests/test_affine_map.py::test_no_constant_that_does_more_than_a_map",
    ),
    (
        "a constant makes the value no larger",
        "fits = all(a in (1, b) for a, b in zip(array.shape, shape, strict=True))",
        "fits = True",
        flow("refuses_a_constant_that_makes_channels"),
    ),
    (
        "a map has as many channels as the layer",
        " or not {flat.scale.size, flat.shift.size} <= {1, length}:",
        ":",
        fold("refuses_channels_that_do_not_match"),
    ),
    (
        "a depth comes first in its blocks",
        "np.tile(array, (1, blocks, 1, 1)) if depth_first",
        "np.repeat(array, blocks, 1) if depth_first",
        flow("crosses_depth_to_space"),
    ),
    (
        "what a slice cuts away is not scaled",
        "return AffineMap(spread(affine.scale, 1), spread(affine.shift, 0))",
        "return AffineMap(spread(affine.scale, 0), spread(affine.shift, 0))",
        "tests/test_affine_map.py::test_the_whole_of_a_slice_leaves_the_rest_alone",
    ),
    (
        "the map of one sample is that of all",
        "if affine.scale.shape[0] != 1 or affine.shift.shape[0] != 1 or not wanted:",
        "if not wanted:",
        flow("refuses_a_reshape_where_the_map_differs_by_sample"),
    ),
)

LAYERS = mutations(
    ("graph/layers.py",),
    (
        "a Gemm reads its features where transA says",
        'return 0 if int_attribute(self.node, "transA", 0) else rank - 1',
        "return rank - 1",
        flow("refuses_a_gemm_that_reads_it_transposed"),
    ),
    (
        "an attribute of a layer is not left to a caller",
        "reason = chosen_by_caller(self.node)",
        "reason = None",
        fold("refuses_a_layer_whose_attributes_the_caller_chooses"),
    ),
    (
        "weight and bias of an ONNX layer are known",
        "reason = None if value is None else why_it_varies(value)",
        "reason = None",
        fold("refuses_weights_computed_at_run_time"),
    ),
    (
        "the weight of a MatMul is a matrix",
        "if self.is_linear and len(constant_tensor(self.weight).shape) != 2:",
        "if False:",
        fold("refuses_a_matmul_by_more_than_a_matrix"),
    ),
    (
        "a MatMul has its features on the columns",
        "return algebra.LayerShape(transposed=True)",
        "return algebra.LayerShape()",
        fold("a_matmul_alone_becomes_a_gemm"),
    ),
    (
        "transB is seen",
        'transposed=not int_attribute(self.node, "transB", 0)',
        "transposed=True",
        fold("gemm"),
    ),
    (
        "the groups of a Conv are seen",
        'groups=int_attribute(self.node, "group", 1)',
        "groups=1",
        flow("goes_down_into_a_convolution"),
    ),
    (
        "a ConvTranspose is transposed",
        'transposed=is_op(self.node, "ConvTranspose")',
        "transposed=False",
        fold("convolutions"),
    ),
    (
        "a ConvTranspose computes its channels in each group",
        "return second * self.shape.groups if self.shape.transposed else first",
        "return second if self.shape.transposed else first",
        fold("convolutions"),
    ),
    (
        "a Conv reads its channels in each group",
        "return first if self.shape.transposed else second * self.shape.groups",
        "return first if self.shape.transposed else second",
        flow("goes_down_into_a_convolution"),
    ),
    (
        "a Gemm pads nothing",
        "if self.is_linear:\n            return False",
        "if self.is_linear:\n            return True",
        flow("goes_down_into_a_gemm"),
    ),
    (
        "a ConvTranspose has borders",
        "return True  # at a border",
        "return False  # at a border",
        flow("refuses_a_transposed_convolution_below"),
    ),
    (
        "pads are seen",
        'if any(ints_attribute(self.node, "pads") or ()):',
        "if False:",
        flow("refuses_a_convolution_that_pads_with_zeros"),
    ),
    (
        "auto_pad pads at either end",
        'in ("SAME_UPPER", "SAME_LOWER")',
        'in ("SAME_UPPER",)',
        flow("refuses_a_convolution_that_pads_with_zeros"),
    ),
    (
        "auto_pad pads no kernel of 1",
        "return same and any(size != 1 for size in kernel)",
        "return same",
        flow("goes_down_into_a_convolution_of_one_tap_that_says_same"),
    ),
    (
        "alpha multiplies a shift before",
        'return float_attribute(self.node, "alpha", 1.0) if is_op(self.node, "Gemm") else 1.0',
        "return 1.0",
        flow("goes_down_into_a_gemm"),
    ),
    (
        "beta goes into the bias",
        'bias * np.longdouble(float_attribute(self.node, "beta", 1.0))',
        "bias",
        fold("gemm"),
    ),
    (
        "beta is 1 once it is in the bias",
        'if "beta" in self.node.attributes:',
        "if False:",
        fold("gemm"),
    ),
    (
        "the bias of an ONNX layer is scaled",
        "edit.out_scale * own + edit.bias",
        "own + edit.bias",
        fold("convolutions"),
    ),
    (
        "a bias may differ by row",
        "if len(rows) == 1:",
        "if True:",
        fold("gemm"),
    ),
    (
        "the distance of a bias by row counts",
        "max_ulp=max(folded.max_ulp, 0.0 if others is None else others.max_ulp),",
        "max_ulp=folded.max_ulp,",
        fold("distances_and_flushes_of_a_bias_by_row_count"),
    ),
    (
        "a flushed bias by row counts",
        "num_flushed=folded.num_flushed + (0 if others is None else others.num_flushed),",
        "num_flushed=folded.num_flushed,",
        fold("distances_and_flushes_of_a_bias_by_row_count"),
    ),
    (
        "ONNX weights are rounded to their own type",
        "dtype = _STORAGE_TYPES.get(self.dtype, str(self.dtype))",
        'dtype = "float32"',
        fold("refuses_weights_that_overflow_float16"),
    ),
    (
        "new weights have the type of the old",
        "ir.tensor(values.astype(self.dtype.numpy()), dtype=self.dtype)",
        "ir.tensor(values.astype(np.float32))",
        fold("mixed_types_come_out_as_the_type_of_the_layer"),
    ),
    (
        "a replaced weight is removed",
        "if value is not None:\n                remove_if_unread(value)",
        "if value is None:\n                remove_if_unread(value)",
        fold("constant_nodes_are_constants"),
    ),
    (
        "a product that others read is no layer with a bias",
        "if len(product.uses()) == 1 and not product.is_graph_output() and",
        "if product.uses() and not product.is_graph_output() and",
        fold("refuses_a_product_that_is_read_before_its_bias_is_added"),
    ),
    (
        "a product that is an output is no layer with a bias",
        "if len(product.uses()) == 1 and not product.is_graph_output() and",
        "if len(product.uses()) == 1 and",
        fold("refuses_a_product_that_is_an_output_before_its_bias_is_added"),
    ),
    (
        "a bias is added in the graph of its layer",
        "if bias is not None and reader.graph is node.graph and",
        "if bias is not None and",
        fold("refuses_a_bias_that_a_branch_adds"),
    ),
    (
        "a bias that is added is known",
        " and why_it_varies(bias) is None:",
        ":",
        fold("refuses_a_matmul_whose_bias_is_computed"),
    ),
    (
        "a bias gives the value no more features",
        "if not lengths or lengths[-1] in (1, constant_tensor(weight).shape.numpy()[1]):",
        "if True:",
        flow("an_add_that_gives_a_matmul_more_features_is_no_bias"),
    ),
    (
        "a MatMul of more than matrices becomes no Gemm",
        "after_matrices = editor.rank(left) == 2",
        "after_matrices = True",
        flow("goes_down_into_a_matmul_of_sequences"),
    ),
    (
        "the product before a new Add has a name of its own",
        'editor.new_name(f"{before.name}_product")',
        'f"{before.name}_product"',
        fold("the_product_before_a_new_bias_has_a_name_of_its_own"),
    ),
)

FLOW = mutations(
    ("graph/affine_flow.py",),
    (
        "a layer lies in the graph of its BatchNormalization",
        "if node.graph is not reader.graph:  # 5",
        "if False:  # 5",
        fold("refuses_a_layer_outside_the_branch"),
    ),
    (
        "what lies above is an output of no graph",
        'if value.is_graph_output():\n        return f"its input',
        'if False:\n        return f"its input',
        fold("refuses_a_value_that_is_an_output"),
    ),
    (
        "what lies above has one reader",
        "if len(value.uses()) == 1:",
        "if True:",
        fold("refuses_a_value_with_another_reader"),
    ),
    (
        "a branch is a reader",
        "if len(value.uses()) == 1:",
        "if len([n for n, _ in value.uses() if n.graph is value.producer().graph]) == 1:",
        fold("refuses_a_value_that_a_branch_reads"),
    ),
    (
        "an Add of two streams is called a residual stream",
        'return is_op(node, "Add") and',
        "return False and",
        fold("refuses_the_residual_stream"),
    ),
    (
        "a bias added is called no residual stream",
        "all(why_it_varies(value) is not None for value in node.inputs)",
        "True",
        fold("refuses_a_product_that_is_read_before_its_bias_is_added"),
    ),
    (
        "a constant minus a layer turns the sign",
        "turned = affine if at == 1 else AffineMap(-affine.scale, affine.shift)",
        "turned = affine",
        flow("takes_in_sums_and_products_with_constants"),
    ),
    (
        "Sub takes the constant away",
        "taken_in = add_constant(turned, array, shape, sign=-1)",
        "taken_in = add_constant(turned, array, shape)",
        flow("takes_in_sums_and_products_with_constants"),
    ),
    (
        "a constant divided by a layer is no map of it",
        "taken_in = None if at == 0 else multiply_by_constant",
        "taken_in = multiply_by_constant",
        flow("refuses_a_constant_divided_by_a_layer"),
    ),
    (
        "Div divides",
        "multiply_by_constant(affine, array, shape, divide=True)",
        "multiply_by_constant(affine, array, shape)",
        flow("takes_in_sums_and_products_with_constants"),
    ),
    (
        "a Concat joins no value with itself",
        "if len(set(parts)) != len(parts):",
        "if False:",
        flow("refuses_a_concatenation_of_a_value_with_itself"),
    ),
    (
        "each part of a Concat takes its own channels",
        "start += length if known and length else 0",
        "start += 0",
        flow("a_concatenation_parts_the_map"),
    ),
    (
        "a Concat has parts of known lengths",
        "known = known and isinstance(length, int)",
        "known = True",
        flow("refuses_a_concatenation_of_parts_of_unknown_lengths"),
    ),
    (
        "an Add adds no value to itself",
        "if len(set(summands)) != len(summands):",
        "if False:",
        flow("refuses_a_sum_of_a_value_with_itself"),
    ),
    (
        "a sum stretches nothing that is normalised",
        "stretched = [axis for axis in range(len(total)) if shape[axis] != total[axis]]",
        "stretched: list[int] = []",
        flow("refuses_a_sum_that_stretches_what_is_normalised"),
    ),
    (
        "summands have as many axes as the sum",
        " or len(shape) != len(total):",
        ":",
        flow("refuses_a_sum_of_values_of_different_ranks"),
    ),
    (
        "one summand of an Add takes the shift",
        "affine if k == 0 else affine.without_shift()",
        "affine",
        flow("a_sum_of_layers_takes_the_shift_once"),
    ),
    (
        "downwards, an output of the graph stays as it is",
        "if value.is_graph_output() or not value.uses():",
        "if not value.uses():",
        flow("refuses_to_go_down_where_it_is_an_output"),
    ),
    (
        "downwards, somebody reads the value",
        "if value.is_graph_output() or not value.uses():",
        "if value.is_graph_output():",
        flow("refuses_to_go_down_where_nobody_reads"),
    ),
    (
        "downwards, readers are in the same graph",
        "alone = reader.graph is home",
        "alone = True",
        flow("refuses_to_go_down_into_a_branch"),
    ),
    (
        "downwards, a value is the input of its reader",
        "if not alone or at != 0 or",
        "if not alone or",
        flow("refuses_a_layer_that_takes_it_for_a_weight"),
    ),
    (
        "downwards, a value is read once by its reader",
        "at != 0 or list(reader.inputs).count(value) != 1:",
        "at != 0:",
        flow("refuses_a_layer_that_reads_it_twice"),
    ),
    (
        "downwards, every reader takes in the map",
        "for reader, at in value.uses():",
        "for reader, at in value.uses()[:1]:",
        flow("goes_down_into_every_reader"),
    ),
    (
        "downwards, one reader that cannot stops the map",
        "found = _targets_in(reader, affine, layers)",
        "found = [t for t in _targets_in(reader, affine, layers) if isinstance(t, Target)]",
        flow("refuses_to_go_down_where_one_reader_cannot"),
    ),
    (
        "no shift meets the zeros that a Conv pads with",
        "if layer.refusal is None and layer.pads_with_zeros and affine.shift.any():  # 7",
        "if False:  # 7",
        flow("refuses_a_convolution_that_pads_with_zeros"),
    ),
    (
        "a map without shift meets zeros",
        "if layer.refusal is None and layer.pads_with_zeros and affine.shift.any():  # 7",
        "if layer.refusal is None and layer.pads_with_zeros:  # 7",
        flow("a_map_without_shift_goes_down_into_any_convolution"),
    ),
    (
        "a kernel of unknown size is not asked whether it pads",
        "if layer.refusal is None and layer.pads_with_zeros and",
        "if layer.pads_with_zeros and",
        flow("refuses_a_convolution_below_whose_weight_is_computed"),
    ),
    (
        "a layer that is refused takes no map",
        "if layer.refusal is not None:\n        return layer.refusal",
        "if False:\n        return layer.refusal",
        fold("refuses_weights_that_a_caller_may_replace"),
    ),
    (
        "a MatMul has its features on the last axis",
        "axis = affine.rank - 1 if layer.is_linear else 1",
        "axis = 1",
        fold("refuses_a_matmul_of_rank_3"),
    ),
)

CROSSINGS = mutations(
    ("graph/crossings.py",),
    (
        "what an operator does is not left to a caller",
        "reason = chosen_by_caller(node)",
        "reason = None",
        fold("refuses_to_cross_what_the_caller_chooses"),
    ),
    (
        "nobody uses a second output",
        "if any(is_present(value) for value in node.outputs[1:]):",
        "if False:",
        flow("refuses_a_maximum_whose_places_are_used"),
    ),
    (
        "nobody uses the mask of a Dropout",
        "if any(is_present(value) for value in node.outputs[1:]):",
        "if False:",
        fold("refuses_a_dropout_whose_mask_is_used"),
    ),
    (
        "what an operator does is known",
        'if not is_op(node, "Dropout") and any(',
        "if False and any(",
        flow("refuses_a_reshape_whose_shape_is_computed"),
    ),
    (
        "a Dropout in training drops",
        "if constant_array(training).any() else affine",
        "if False else affine",
        fold("refuses_a_dropout_that_drops"),
    ),
    (
        "whether a Dropout drops is known",
        'return f"whether {describe(node)} drops values {reason}"',
        "return affine",
        fold("refuses_a_dropout_that_may_drop"),
    ),
    (
        "a Cast to another type does something",
        "return affine if is_same else None",
        "return affine",
        flow("refuses_a_cast_to_another_type"),
    ),
    (
        "QuantizeLinear and DequantizeLinear do something",
        '"Identity": _identity,',
        '**dict.fromkeys(("Identity", "QuantizeLinear", "DequantizeLinear"), _identity),',
        fold("refuses_what_lies_between"),
    ),
    (
        "upwards, a Transpose moves axes back",
        "return permute(affine, np.argsort(_permutation(node, affine.rank)).tolist())",
        "return permute(affine, _permutation(node, affine.rank))",
        flow("crosses_a_transpose_that_turns_three_axes_around"),
    ),
    (
        "downwards, a Transpose moves axes on",
        "Crossed:\n    return permute(affine, _permutation(node, affine.rank))",
        "Crossed:\n    return permute(affine, [*np.argsort(_permutation(node, affine.rank))])",
        flow("goes_down_through_a_transpose_that_turns_three_axes_around"),
    ),
    (
        "a Transpose turns all axes around by default",
        "or list(reversed(range(rank)))",
        "or list(range(rank))",
        flow("a_transpose_without_an_order_turns_all_axes_around"),
    ),
    (
        "a depth comes first by default",
        'depth_first = string_attribute(node, "mode", "DCR") == "DCR"',
        'depth_first = string_attribute(node, "mode", "CRD") == "DCR"',
        flow("crosses_depth_to_space"),
    ),
    (
        "a Slice has steps",
        "slice(start, end, step)",
        "slice(start, end)",
        flow("crosses_a_slice_of_channels"),
    ),
    (
        "a Slice names its axes",
        "axes, steps = given[2] or range(len(starts)),",
        "axes, steps = range(len(starts)),",
        flow("crosses_a_slice_of_channels"),
    ),
    (
        "upwards, a Slice keeps the channels where they were",
        "crossed = None if crossed is None else whole(crossed, axis, shape[axis], chosen)",
        "pass",
        flow("crosses_a_slice_of_channels"),
    ),
    (
        "downwards, a Slice takes its channels alone",
        "crossed = None if crossed is None else part(crossed, axis, chosen)",
        "pass",
        flow("goes_down_through_a_slice_of_channels"),
    ),
    (
        "an AveragePool that counts no padding is an average",
        'counts_padding = bool(int_attribute(node, "count_include_pad", 0)) and (',
        "counts_padding = True and (",
        flow("crosses_averages_of_values_alone"),
    ),
    (
        "an AveragePool counts no padding",
        'any(ints_attribute(node, "pads") or ())\n        or ',
        "",
        flow("refuses_averages_that_count_padding"),
    ),
    (
        "an AveragePool counts no padding that auto_pad adds",
        'or string_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")',
        "",
        flow("refuses_averages_that_count_padding"),
    ),
    (
        "VALID adds no padding",
        'not in ("NOTSET", "VALID")',
        'not in ("NOTSET",)',
        flow("crosses_averages_of_values_alone"),
    ),
    (
        "an AveragePool counts nothing beyond the value",
        'or bool(int_attribute(node, "ceil_mode", 0))',
        "",
        flow("refuses_averages_that_count_padding"),
    ),
    (
        "no negative scale crosses MaxPool",
        "if (affine.scale >= 0).all() else None",
        "if True else None",
        fold("refuses_what_lies_between"),
    ),
    (
        "a scale of zero crosses MaxPool",
        "if (affine.scale >= 0).all() else None",
        "if (affine.scale > 0).all() else None",
        flow("crosses_the_largest_where_no_scale_is_negative"),
    ),
    (
        "a Pad with a constant repeats nothing",
        'string_attribute(node, "mode", "constant") not in ("reflect", "edge", "wrap")',
        'string_attribute(node, "mode", "constant") == ""',
        fold("refuses_what_lies_between"),
    ),
    (
        "a Pad makes nothing longer that is normalised",
        "for axis, begin, end in ends if begin or end]",
        "for axis, begin, end in ends if begin and end and axis > 1]",
        flow("refuses_padding_along_what_is_normalised"),
    ),
    (
        "a Pad names its axes",
        "axes = constant_ints(optional_input(node, 3)) or list(range(rank))",
        "axes = list(range(rank))",
        flow("crosses_padding_that_repeats_values"),
    ),
    (
        "a linear Resize computes new values",
        'new_values = string_attribute(node, "mode", "nearest") != "nearest"',
        "new_values = False",
        flow("refuses_resizing_to_new_values"),
    ),
    (
        "a Resize that crops puts values in",
        'crops = string_attribute(node, "coordinate_transformation_mode", "") == ',
        "crops = False and ",
        flow("refuses_resizing_to_new_values"),
    ),
    (
        "a Resize makes nothing larger that is normalised",
        "for axis, scale in zip(axes, scales, strict=True) if scale != 1]",
        "for axis, scale in zip(axes, scales, strict=True) if axis > 1]",
        flow("refuses_resizing_to_new_values"),
    ),
    (
        "a Resize to a size makes nothing larger that is normalised",
        "return [axis for axis in axes if shape[axis] != changed[axis]]",
        "return [axis for axis in axes if axis > 1]",
        flow("refuses_resizing_to_a_size_along_what_is_normalised"),
    ),
    (
        "upwards, a map is the same within a window of ONNX",
        "return None if axes is None else flatten_axes(affine, axes)",
        "return None if axes is None else affine",
        flow("refuses_a_map_that_differs_within_a_window"),
    ),
    (
        "upwards, a ReduceMean gives back the axes it drops",
        "if not keeps:",
        "if False:",
        flow("crosses_a_mean_over_places"),
    ),
    (
        "downwards, a ReduceMean averages nothing that is normalised",
        "flat = None if axes is None else flatten_axes(affine, axes)",
        "flat = None if axes is None else affine",
        flow("refuses_a_mean_below_over_what_is_normalised"),
    ),
    (
        "downwards, a ReduceMean drops its axes",
        'if flat is None or axes is None or int_attribute(node, "keepdims", 1):',
        "if True:",
        flow("goes_down_through_a_mean_that_drops_its_axes"),
    ),
    (
        "a ReduceMean of the batch is no map of a sample",
        "return None if 0 in positive else positive",
        "return positive",
        flow("refuses_a_mean_over_channels_or_the_batch"),
    ),
    (
        "a ReduceMean without axes is that of everything",
        "if not axes or shape is None:",
        "if axes is None:\n        axes = (2, 3)\n    if shape is None:",
        flow("refuses_a_mean_of_everything"),
    ),
)

FOLD = mutations(
    ("graph/fold_batchnorm.py",),
    (
        "an attribute of a BatchNormalization is not left to a caller",
        "reason = chosen_by_caller(norm.node)",
        "reason = None",
        fold("refuses_what_the_caller_of_a_function_chooses"),
    ),
    (
        "a BatchNormalization is of opset 7 or later",
        "if opset < _OLDEST_OPSET:  #",
        "if False:  #",
        fold("refuses_an_opset_in_which_it_meant_something_else"),
    ),
    (
        "training_mode is seen",
        'int_attribute(norm.node, "training_mode", 0) or any(',
        "any(",
        fold("refuses_a_batchnorm_of_training_mode_with_one_output"),
    ),
    (
        "before opset 14, further outputs say training",
        "value.name for value in norm.node.outputs[1:]",
        "False for value in norm.node.outputs[1:]",
        fold("refuses_a_batchnorm_whose_further_outputs_say_training"),
    ),
    (
        "spatial = 0 is seen",
        'if int_attribute(norm.node, "spatial", 1) == 0:',
        "if False:",
        fold("refuses_statistics_per_pixel"),
    ),
    (
        "parameters of a BatchNormalization are known",
        "if reason is not None:  # 2",
        "if False:  # 2",
        fold("refuses_parameters_computed_at_run_time"),
    ),
    (
        "parameters are one vector each",
        "if mean.ndim != 1 or not gamma.shape == beta.shape == mean.shape == var.shape:",
        "if False:",
        fold("refuses_parameters_of_different_shapes"),
    ),
    (
        "an input has an axis of channels",
        "if rank < 2:",
        "if False:",
        fold("refuses_an_input_without_an_axis_of_channels"),
    ),
    (
        "the number of axes is known",
        'if shape is None:\n            return "the number of axes',
        'if False:\n            return "the number of axes',
        fold("refuses_an_input_of_unknown_rank"),
    ),
    (
        "arithmetic of an old opset is none of today",
        "if opset < _OLDEST_OPSET:  #",
        'if opset < _OLDEST_OPSET and is_op(norm.node, "BatchNormalization"):  #',
        flow("a_frozen_batchnorm_of_an_old_opset_stays"),
    ),
    (
        "epsilon is 1e-5 by default",
        "_DEFAULT_EPSILON = 1e-5",
        "_DEFAULT_EPSILON = 1e-3",
        fold("epsilon_is_the_float32_number"),
    ),
    (
        "a frozen shift is the same for each sample",
        "if total is identity:",
        "if False:",
        flow("a_frozen_batchnorm_with_numbers_for_each_sample_stays"),
    ),
    (
        "a frozen scale is the same for each sample",
        'if product is None:\n            return "its scale',
        'product = product or identity\n        if False:\n            return "its scale',
        flow("a_frozen_batchnorm_with_numbers_for_each_sample_stays"),
    ),
    (
        "a frozen product has one reader",
        "alone = len(value.uses()) == 1 and not",
        "alone = not",
        flow("a_frozen_batchnorm_whose_product_is_read_by_another_stays"),
    ),
    (
        "a frozen product is no output",
        "len(value.uses()) == 1 and not value.is_graph_output() and product.graph",
        "len(value.uses()) == 1 and product.graph",
        flow("a_frozen_batchnorm_whose_product_is_read_stays"),
    ),
    (
        "a frozen product lies in the graph of its sum",
        " and product.graph is node.graph\n",
        "\n",
        flow("a_frozen_batchnorm_in_two_graphs_stays"),
    ),
    (
        "arithmetic that goes nowhere is not reported",
        "if norm.product is None\n        ]",
        "if True\n        ]",
        flow("arithmetic_that_reaches_no_layer_is_not_reported"),
    ),
    (
        "an ONNX layer's second fold goes on from the first",
        "if layer.node in self._layers:",
        "if False:",
        fold("two_batchnorms_are_rounded_once"),
    ),
    (
        "in ONNX, before is not after",
        'if target.side == "after":',
        "if True:",
        flow("goes_down_into_a_gemm"),
    ),
    (
        "a shift before a Gemm meets its alpha",
        "shift = np.longdouble(layer.product_factor) * target.shift",
        "shift = target.shift",
        flow("goes_down_into_a_gemm"),
    ),
    (
        "an ONNX fold that is not finite is refused",
        "except ValueError as error:  # 5",
        "except ZeroDivisionError as error:  # 5",
        fold("refuses_statistics_that_give_no_number"),
    ),
    (
        "a refused BatchNormalization is tried again",
        "if len(left) == len(waiting):",
        "if True:",
        flow("two_maps_go_down_into_one_layer"),
    ),
    (
        "values flushed count once for a layer",
        "fresh = [folded for folded in layers if folded.layer.node not in counted]",
        "fresh = layers",
        flow("flushed_values_count_once_for_a_layer"),
    ),
    (
        "what was taken in on two ways goes once",
        "for passed in absorbed.values():",
        "for passed in [node for target in targets for node in target.absorbed]:",
        flow("a_constant_before_a_part_in_two_is_taken_in_once"),
    ),
    (
        "the constants of what went are gone",
        "if value is not None:\n                remove_if_unread(value)\n        return True",
        "if value is None:\n                remove_if_unread(value)\n        return True",
        fold("convolutions"),
    ),
    (
        "the result of a layer below loses its name",
        "if keep_name:",
        "if True:",
        flow("a_name_goes_where_its_numbers_go"),
    ),
    (
        "a name keeps its meaning above",
        "if keep_name:",
        "if False:",
        flow("a_name_goes_where_its_numbers_go"),
    ),
    (
        "a LayerNormalization is folded on request",
        "if not layernorm or _has_no_affine_part(node):",
        "if _has_no_affine_part(node):",
        flow("a_layernorm_is_left_alone_unless_asked_for"),
    ),
    (
        "a LayerNormalization without an affine part is no site",
        "if not layernorm or _has_no_affine_part(node):",
        "if not layernorm:",
        flow("a_layernorm_without_an_affine_part_is_not_reported"),
    ),
    (
        "a LayerNormalization of scale 1 may have a bias",
        "return bias is None or (why_it_varies(bias) is None and not constant_array(bias).any())",
        "return True",
        flow("a_layernorm_whose_scale_is_one_has_a_bias_to_fold"),
    ),
    (
        "a LayerNormalization does not go up",
        'if not is_op(norm.node, "LayerNormalization"):\n            reader',
        "if True:\n            reader",
        flow("a_layernorm_does_not_go_up"),
    ),
    (
        "a LayerNormalization stays",
        'if is_op(norm.node, "LayerNormalization"):\n            self._take',
        "if False:\n            self._take",
        flow("the_affine_part_of_a_layernorm_goes_down"),
    ),
    (
        "a LayerNormalization keeps no bias",
        "for at, number in ((1, 1), (2, 0)):",
        "for at, number in ((1, 1),):",
        flow("the_affine_part_of_a_layernorm_goes_down"),
    ),
)

EDITOR = mutations(
    ("graph/editor.py",),
    (
        "an initializer that is an input is no constant",
        "if value.is_graph_input():\n        if value.is_initializer():",
        "if value.is_graph_input() and not value.is_initializer():\n        if True:",
        fold("refuses_parameters_that_a_caller_may_replace"),
    ),
    (
        "a shared weight is cloned",
        "alone = len(old.uses()) == 1 and not old.is_graph_output()",
        "alone = not old.is_graph_output()",
        fold("shared_weights_are_cloned"),
    ),
    (
        "a weight that is an output is cloned",
        "alone = len(old.uses()) == 1 and not old.is_graph_output()",
        "alone = len(old.uses()) == 1",
        fold("a_weight_that_is_an_output_is_cloned"),
    ),
    (
        "a new name is taken by nobody",
        "while unique in self._names:",
        "while False:",
        fold("names_collide_with_nothing"),
    ),
    (
        "a new name is taken from then on",
        "self._names.add(unique)",
        "pass",
        flow("goes_down_into_every_reader"),
    ),
    (
        "the names of inner graphs are taken",
        "for graph in (root, *root.subgraphs()):",
        "for graph in (root,):",
        fold("names_collide_with_none_of_a_branch"),
    ),
    (
        "an old file has no plain initializers",
        "constants_are_nodes=model.ir_version < 4",
        "constants_are_nodes=False",
        fold("in_a_file_too_old_for_plain_initializers_constants_stay_nodes"),
    ),
    (
        "a function has no initializers",
        "yield GraphEditor(model, function, names=names, constants_are_nodes=True)",
        "yield GraphEditor(model, function, names=names, constants_are_nodes=False)",
        fold("a_local_function_is_folded"),
    ),
    (
        "an operator of another domain has another meaning",
        ' and node.domain in ("", "ai.onnx")',
        "",
        fold("refuses_an_operator_of_another_domain"),
    ),
    (
        "a constant that others read stays",
        "if constant.uses() or constant.is_graph_output() or constant.is_graph_input():",
        "if constant.is_graph_output() or constant.is_graph_input():",
        fold("constants_that_others_read_stay"),
    ),
    (
        "a constant that is an output stays",
        "if constant.uses() or constant.is_graph_output() or constant.is_graph_input():",
        "if constant.uses() or constant.is_graph_input():",
        fold("a_parameter_that_is_an_output_stays"),
    ),
    (
        "a mask that is an output is used",
        "return bool(value.uses()) or value.is_graph_output()",
        "return bool(value.uses())",
        fold("refuses_a_dropout_whose_mask_is_used"),
    ),
    (
        "attributes are float32 numbers",
        "return float(np.float32(default if attribute is None else attribute.as_float()))",
        "return default if attribute is None else attribute.as_float()",
        fold("epsilon_is_the_float32_number"),
    ),
    (
        "a function's shapes follow from its weights",
        'channels = weight[1] * int_attribute(node, "group", 1) if is_transposed else weight[0]',
        "channels = weight[0]",
        fold("a_frozen_batchnorm_in_a_local_function_is_folded"),
    ),
)

MUTATIONS = [*AFFINE_MAP, *LAYERS, *FLOW, *CROSSINGS, *FOLD, *EDITOR]
