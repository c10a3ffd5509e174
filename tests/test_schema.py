"""Records: frozen, and the same after a way through JSON, whatever they hold."""

import copy
import dataclasses
import importlib
import json
import math
import pickle
import pkgutil
import types
import typing

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from resdeploy import schema
from resdeploy.errors import ResdeployError
from resdeploy.schema.codec import Record, dump_json, from_json, load_json, record, to_json
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.folds import FoldReport, RefusedSite
from resdeploy.schema.recipes import AugmentSpec, EpochMetrics, ModelSpec, Preprocess
from resdeploy.schema.verdicts import StaticResult

RECORDS = [
    value
    for info in pkgutil.iter_modules(schema.__path__, f"{schema.__name__}.")
    for value in vars(importlib.import_module(info.name)).values()
    if dataclasses.is_dataclass(value) and value.__module__ == info.name
]


def values_of(kind):
    """Return a strategy for values of a field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        # An option that is infinite comes back as the text "Infinity", since it may be a text.
        finite = st.floats(allow_nan=False, allow_infinity=False)
        return st.one_of(
            [
                finite if kind is float and str in arguments else values_of(kind)
                for kind in arguments
            ]
        )
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is not None:  # a mapping
        return st.dictionaries(st.text(max_size=5), values_of(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(kind):
        return records_of(kind)
    return {
        int: st.integers(),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8),
        bool: st.booleans(),
        types.NoneType: st.none(),
    }[kind]


def records_of(cls):
    fields = {field.name for field in dataclasses.fields(cls)}
    hints = {n: kind for n, kind in typing.get_type_hints(cls).items() if n in fields}
    return st.deferred(
        lambda: st.fixed_dictionaries({n: values_of(k) for n, k in hints.items()})
    ).map(lambda fields: cls(**fields))


def assert_identical(left, right):
    """Equality that tells 1 from 1.0 and from True."""
    assert type(left) is type(right)
    if dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_identical(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_identical(a, b)
    else:
        assert left == right


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_record_survives_json(cls, data):
    record = data.draw(records_of(cls))
    text = dump_json(record)
    restored = load_json(cls, text, where="test")
    assert_identical(restored, record)
    assert dump_json(restored) == text


def test_the_round_trip_above_covers_the_records_that_stages_exchange():
    names = {cls.__name__ for cls in RECORDS}
    assert {"Recipe", "CheckpointInfo", "Manifest", "VerifyReport", "BenchResult"} <= names
    assert len(names) > 20


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
def test_every_record_is_frozen_slotted_keyword_only_and_public(cls):
    assert issubclass(cls, Record)
    assert "__slots__" in vars(cls)
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert cls.__name__[0] != "_"
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "the docstring is dataclass's own"


RECIPE = ModelSpec(arch="resnet18", num_classes=10, options={"shortcut": "A"})


def test_a_record_is_made_by_keyword_with_every_field_it_needs():
    assert ModelSpec(arch="resnet18", num_classes=10).options == {}
    assert (
        ModelSpec(arch="resnet18", num_classes=10).options
        is not ModelSpec(arch="resnet18", num_classes=10).options
    )
    with pytest.raises(TypeError, match="needs the field 'num_classes'"):
        ModelSpec(arch="resnet18")
    with pytest.raises(TypeError, match="has no field 'classes'"):
        ModelSpec(arch="resnet18", num_classes=10, classes=10)
    with pytest.raises(TypeError):
        ModelSpec("resnet18", 10)


def test_a_record_cannot_be_changed_but_copied():
    for change in (
        lambda: setattr(RECIPE, "arch", "resnet50"),
        lambda: setattr(RECIPE, "depth", 50),
        lambda: delattr(RECIPE, "arch"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
    assert dataclasses.replace(RECIPE, arch="resnet50").arch == "resnet50"
    for twin in (pickle.loads(pickle.dumps(RECIPE)), copy.deepcopy(RECIPE)):
        assert twin == RECIPE
        assert twin is not RECIPE


def test_records_are_compared_and_hashed_by_value_and_kind():
    spec, other = TensorSpec(name="x", dtype="f", shape=(1,)), AugmentSpec()
    assert spec == TensorSpec(name="x", dtype="f", shape=(1,))
    assert {spec: 1}[TensorSpec(name="x", dtype="f", shape=(1,))] == 1
    assert spec != TensorSpec(name="y", dtype="f", shape=(1,))
    assert spec != other
    assert repr(spec) == "TensorSpec(name='x', dtype='f', shape=(1,))"


def test_a_class_that_is_no_record_is_not_made_one():
    with pytest.raises(TypeError, match="must derive from Record"):
        record(type("Plain", (), {}))


def test_a_record_writes_itself_as_the_command_prints_it():
    assert RECIPE.to_json() == dump_json(RECIPE)


def test_a_notebook_shows_the_verdict_and_every_field_escaped():
    site = RefusedSite(site="<script>", reason="a & b", num_consumers=2)
    drawn = FoldReport(refused=(site,) * 23)._repr_html_()
    assert "<script>" not in drawn
    assert "&lt;script&gt;" in drawn
    assert "a &amp; b" in drawn
    assert drawn.count("&lt;script&gt;") == 20
    assert "and 3 more" in drawn
    static = StaticResult(layers=(), limit_ulp=0.5, reasons=("x",))
    assert "<b>FAIL</b>" in static._repr_html_()
    assert "<b>PASS</b>" in dataclasses.replace(static, reasons=())._repr_html_()
    assert '<th style="text-align:left">shortcut</th>' in RECIPE._repr_html_()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_spelled(value):
    metrics = EpochMetrics(
        epoch=1,
        train_loss=value,
        train_accuracy=0.5,
        test_loss=0.0,
        test_accuracy=0.0,
        learning_rate=0.1,
        duration_s=1.0,
    )
    text = dump_json(metrics)
    json.loads(text, parse_constant=pytest.fail)
    restored = load_json(EpochMetrics, text, where="test").train_loss
    assert restored == value or (math.isnan(restored) and math.isnan(value))


def test_a_whole_number_will_do_for_a_float_but_not_the_other_way():
    assert from_json(AugmentSpec, {"scale": 1}, where="x").scale == 1.0
    assert type(from_json(AugmentSpec, {"scale": 1}, where="x").scale) is float
    with pytest.raises(ResdeployError, match=r"Expected a whole number, found 1\.0"):
        from_json(AugmentSpec, {"shift_px": 1.0}, where="x")


def test_an_option_keeps_its_type():
    options = {"a": 1, "b": 1.0, "c": True, "d": "1"}
    spec = ModelSpec(arch="x", num_classes=2, options=options)
    restored = load_json(ModelSpec, dump_json(spec), where="x")
    assert {k: type(v) for k, v in restored.options.items()} == {
        "a": int,
        "b": float,
        "c": bool,
        "d": str,
    }


def test_a_dimension_is_a_number_or_a_name():
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
    assert load_json(TensorSpec, dump_json(spec), where="x") == spec


def test_an_error_says_where_in_the_record():
    data = to_json(Preprocess(input_shape=(1, 2, 3)))
    data["input_shape"] = [1, "2", 3]
    with pytest.raises(ResdeployError, match=r"where: +f\.json: input_shape\[1\]"):
        from_json(Preprocess, data, where="f.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "This is not JSON"),
        (b"\xff", "This is not JSON"),
        ("[]", "its kind is None"),
        ('{"kind": "Recipe", "schema_version": 1}', "not a FoldReport record"),
        ('{"kind": "FoldReport", "schema_version": 2}', "has schema version 2"),
        ('{"kind": "FoldReport"}', "has schema version None"),
        ('{"kind": "FoldReport", "schema_version": 1, "x": 1}', "Unknown field 'x'"),
        ('{"kind": "FoldReport", "schema_version": 1, "folded": 1}', "Expected a list"),
        ('{"kind": "FoldReport", "schema_version": 1, "folded": [1]}', "Expected an object"),
        (
            '{"kind": "FoldReport", "schema_version": 1, "refused": [{"site": "a"}]}',
            "The field 'reason' is missing",
        ),
    ],
)
def test_refuses_json_that_is_not_the_record(text, message):
    with pytest.raises(ResdeployError, match=message):
        load_json(FoldReport, text, where="test")
