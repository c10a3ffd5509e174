"""A model with a name of two meanings is refused as it is loaded, in every graph of it."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from resdeploy.errors import ResdeployError
from resdeploy.graph.onnx_file import load_onnx
from resdeploy.graph.single_assignment import why_ambiguous

MAIN = "g (float[2] x, bool c) => (float[2] z)"
BRANCH = "then_branch: graph = t () => (float[2] o) {{ {} }}, "
BRANCH += "else_branch: graph = e () => (float[2] p) {{ p = Abs (x) }}"
FUNCTION = '<domain: "local", opset_import: ["": 17]> f (a) => (b) {{ {} }}'


def model_of(text: str, function: str = "b = Neg (a)") -> onnx.ModelProto:
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17, "local": 1]>\n{text}\n{FUNCTION.format(function)}'
    )


def main(body: str) -> onnx.ModelProto:
    return model_of(f"{MAIN} {{ {body} }}")


def branch(inner: str, *, before: str = "y = Neg (x)") -> onnx.ModelProto:
    return main(f"{before} z = If (c) <{BRANCH.format(inner)}>")


def add_initializer(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, "f"), name))
    return model


def add_sparse(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    values = numpy_helper.from_array(np.ones(1, "f"), name)
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
    return model


def inner_initializer(name: str) -> onnx.ModelProto:
    model = branch("o = Abs (y)")
    inner = model.graph.node[1].attribute[0].g
    inner.initializer.append(numpy_helper.from_array(np.ones(2, "f"), name))
    return model


def two_attributes() -> onnx.ModelProto:
    model = main("z = LeakyRelu <alpha = 0.1> (x)")
    model.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.9))
    return model


def two_opsets() -> onnx.ModelProto:
    model = main("z = Neg (x)")
    model.opset_import.append(helper.make_opsetid("ai.onnx", 11))
    return model


def two_functions() -> onnx.ModelProto:
    model = main("z = local.f (x)")
    model.functions.append(model.functions[0])
    return model


AMBIGUOUS = {
    "two initializers": (
        lambda: add_initializer(add_initializer(main("z = Add (x, w)"), "w"), "w"),
        "2 of its initializers are called 'w'",
    ),
    "a dense and a sparse one": (
        lambda: add_sparse(add_initializer(main("z = Add (x, w)"), "w"), "w"),
        "2 of its initializers are called 'w'",
    ),
    "an initializer inside that hides one outside": (lambda: inner_initializer("y"), "'y'"),
    "two inputs": (lambda: model_of("g (float[2] x, float[2] x) => (z) { z = Neg (x) }"), "inputs"),
    "two results": (lambda: main("y = Neg (x) y = Abs (x) z = Neg (y)"), "two values"),
    "two results of a node": (lambda: main("y, y = Split <axis = 0> (x) z = Neg (y)"), "'y'"),
    "a result that is an initializer": (lambda: add_initializer(main("z = Neg (x)"), "z"), "'z'"),
    "a result that is an input": (lambda: main("x = Abs (x) z = Neg (x)"), "'x' is given to two"),
    "a result inside that hides one outside": (lambda: branch("y = Abs (x) o = Neg (y)"), "'y'"),
    "a loop's value that hides one outside": (
        lambda: main(
            "n = Constant <value = int64 {2}> () z = Loop (n, c, x) <body: graph = b "
            "(int64 i, bool k, float[2] x) => (bool l, float[2] o) "
            "{ l = Identity (k) o = Neg (x) }>"
        ),
        "'x' is given to two values, one in an inner graph",
    ),
    "a result in a function": (lambda: model_of(f"{MAIN} {{ z = Neg (x) }}", "a = Neg (a)"), "'a'"),
    "two functions": (two_functions, "functions are called"),
    "two opsets": (two_opsets, "opsets are called 'ai.onnx'"),
    "two attributes": (two_attributes, "attributes are called 'alpha'"),
    "read before it is there": (lambda: main("z = Neg (y) y = Abs (x)"), "Neg reads 'y'"),
    "read and never there": (lambda: main("z = Add (x, w)"), "Add reads 'w'"),
    "read from another branch": (
        lambda: main(f"q = If (c) <{BRANCH.format('o = Abs (x)')}> z = Neg (o)"),
        "Neg reads 'o'",
    ),
    "an output that is never there": (lambda: main("y = Neg (x)"), "'z', which is an output"),
    "an output of a branch": (lambda: branch("q = Abs (x)"), "'o', which is an output"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_model_is_refused_by_the_name(name, tmp_path):
    make, said = AMBIGUOUS[name]
    onnx.save(make(), tmp_path / "model.onnx")
    with pytest.raises(ResdeployError, match="The model is ambiguous") as caught:
        load_onnx(tmp_path / "model.onnx")
    assert said in caught.value.what
    assert caught.value.where == str(tmp_path / "model.onnx")


UNAMBIGUOUS = {
    "a default of an input": lambda: add_initializer(main("z = Neg (x)"), "x"),
    "a name in both branches": lambda: main(
        "z = If (c) <then_branch: graph = t () => (float[2] o) { y = Abs (x) o = Neg (y) }, "
        "else_branch: graph = e () => (float[2] o) { y = Neg (x) o = Abs (y) }>"
    ),
    "a name used again after an inner graph": lambda: branch("w = Abs (x) o = Neg (w)"),
    "a function's own names": lambda: model_of(f"{MAIN} {{ b = Neg (x) z = local.f (b) }}"),
    "outputs left out": lambda: main("z, _ = Dropout (x)"),
    "a value read from around": lambda: branch("o = Abs (y)"),
}


@pytest.mark.parametrize("name", UNAMBIGUOUS)
def test_a_model_of_the_specification_is_not(name):
    assert why_ambiguous(UNAMBIGUOUS[name]()) is None
