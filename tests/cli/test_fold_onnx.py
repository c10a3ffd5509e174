"""`resdeploy fold-bn model.onnx`: what it writes, what it judges, and what it will not read."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from resdeploy.schema.codec import load_json
from resdeploy.schema.folds import FoldReport

FOLDABLE = "y = Conv <pads = [1, 1, 1, 1]> (x, w) z = BatchNormalization (y, g, b, m, v)"
REFUSED = f"{FOLDABLE.replace('z =', 'u =')} r = Relu (u) z = BatchNormalization (r, g, b, m, v)"


def make_model(body: str = FOLDABLE, *, inputs: str = "float[n, 3, 8, 8] x") -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]>g ({inputs}) => (float[a, b, c, d] z) {{ {body} }}'
    )
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(4, 3, 3, 3)), "v": random.uniform(0.5, 2, size=4)}
    weights |= {name: random.normal(size=4) for name in "gbm"}
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return model


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(make_model(), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """An empty folder to write to, so that whatever is left behind shows."""
    path = tmp_path / "work"
    path.mkdir()
    return path


def outputs(path, x):
    return ort.InferenceSession(str(path)).run(None, {"x": x})[0]


def test_a_folded_file_computes_the_same(run, source, folder):
    result = run("fold-bn", source, "-o", folder / "folded.onnx")
    assert result.exit_code == 0, result.output
    assert "1 folded, 0 refused, every weight within 0.50 ulp" in result.stdout
    folded = onnx.load(folder / "folded.onnx")
    onnx.checker.check_model(folded, full_check=True)
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(
        outputs(folder / "folded.onnx", x), outputs(source, x), rtol=1e-4, atol=1e-4
    )
    assert [path.name for path in folder.iterdir()] == ["folded.onnx"]


def test_json_holds_the_verdict(run, source):
    result = run("fold-bn", source, "--dry-run", "--json")
    report = load_json(FoldReport, result.stdout, where="stdout")
    assert report.complete
    assert report.comparison.passed
    assert 0 < report.comparison.noise_ratio <= 4
    assert [site.op for site in report.folded] == ["Conv"]


def test_a_dry_run_writes_nothing(run, source, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert run("fold-bn", source, "--dry-run").exit_code == 0
    assert sorted(tmp_path.iterdir()) == before


def test_strict_exits_1_when_a_site_is_refused(run, tmp_path, folder):
    path = tmp_path / "model.onnx"
    onnx.save(make_model(REFUSED), path)
    assert run("fold-bn", path, "-o", folder / "a.onnx").exit_code == 0
    result = run("fold-bn", path, "-o", folder / "b.onnx", "--strict")
    assert result.exit_code == 1
    assert "its input comes from `r` (Relu)" in " ".join(result.stdout.split())
    assert (folder / "b.onnx").exists()


def test_what_is_folded_already_is_written_as_it_was(run, source, folder):
    run("fold-bn", source, "-o", folder / "once.onnx")
    result = run("fold-bn", folder / "once.onnx", "-o", folder / "twice.onnx")
    assert "0 folded, 0 refused" in result.stdout
    assert (folder / "twice.onnx").read_bytes() == (folder / "once.onnx").read_bytes()


def test_a_wrong_fold_is_never_written(run, source, folder, monkeypatch):
    from resdeploy.api import fold_onnx as fold_file

    def fold_wrongly(model, **_):
        report = fold(model)
        bias = model.graph.initializers["w_bias"]
        numbers = bias.const_value.numpy()
        bias.const_value = type(bias.const_value)(numbers * np.float32(1.001))
        bias.const_value.name = bias.name
        return report

    fold = fold_file.fold_batchnorm
    monkeypatch.setattr(fold_file, "fold_batchnorm", fold_wrongly)
    result = run("fold-bn", source, "-o", folder / "folded.onnx")
    assert result.exit_code == 2
    assert "nothing was written" in result.stderr
    assert list(folder.iterdir()) == []


def test_an_existing_output_is_kept_without_force(run, source, folder):
    target = folder / "folded.onnx"
    target.write_text("mine")
    assert run("fold-bn", source, "-o", target).exit_code == 2
    assert target.read_text() == "mine"
    assert run("fold-bn", source, "-o", target, "--force").exit_code == 0
    assert onnx.load(target).graph.node


def test_no_torch_is_needed(source, folder):
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from resdeploy.cli import cli\n"
        f"cli(['fold-bn', {str(source)!r}, '-o', {str(folder / 'folded.onnx')!r}])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (folder / "folded.onnx").exists()


def test_open_sizes_of_an_image_can_be_given(run, tmp_path):
    path = tmp_path / "model.onnx"
    body = f"{FOLDABLE.replace('z =', 'u =')} z = Reshape (u, s)"
    model = make_model(body, inputs="float[n, 3, h, w] x")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 4, 10, 12]), "s"))
    onnx.save(model, path)
    result = run("fold-bn", path, "--dry-run")
    assert result.exit_code == 2
    assert "fix:   give the shape of one sample, as in --input 3,224,224" in result.stderr
    assert run("fold-bn", path, "--dry-run", "--input", "3,10,12").exit_code == 0


def test_options_that_name_a_torch_model_are_refused(run, source):
    result = run("fold-bn", source, "--dry-run", "--arch", "resnet50")
    assert result.exit_code == 2
    assert "An ONNX file needs no architecture" in result.stderr


# --- files that are not to be trusted ------------------------------------------------------------


def assert_refused(result, folder, what):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert what in result.stderr
    assert "  where: " in result.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"this is not a model", b"\x08\x08"])
def test_a_file_that_is_not_onnx(run, tmp_path, folder, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    result = run("fold-bn", path, "-o", folder / "folded.onnx")
    assert_refused(result, folder, "This is not an ONNX model.")


def test_a_truncated_file(run, source, folder):
    raw = source.read_bytes()
    source.write_bytes(raw[: len(raw) // 2])
    assert_refused(run("fold-bn", source, "-o", folder / "f.onnx"), folder, "error: ")


def test_a_missing_file(run, tmp_path, folder):
    result = run("fold-bn", tmp_path / "nowhere.onnx", "-o", folder / "folded.onnx")
    assert_refused(result, folder, "There is no such file.")


def with_external_weight(path, location: str, *, write: bool = True) -> None:
    """Save the model with its weight in a file of its own, at `location`."""
    model = make_model()
    weight = model.graph.initializer[0]
    raw = weight.raw_data
    if write:
        (path.parent / location).write_bytes(raw)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(len(raw))}.items():
        weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def all_outside(monkeypatch):
    """Let every weight count as large enough for a file of its own."""
    from resdeploy.api import fold_onnx as fold_file

    monkeypatch.setattr(fold_file, "_EXTERNAL_TENSOR_BYTES", 0)
    return fold_file


def test_weights_beside_the_model_stay_beside_it(run, tmp_path, folder, all_outside):
    path = tmp_path / "model.onnx"
    with_external_weight(path, "weights.bin")
    result = run("fold-bn", path, "-o", folder / "folded.onnx", "--json")
    assert load_json(FoldReport, result.stdout, where="stdout").comparison.passed
    assert_pair(folder, "folded.onnx")
    moved = folder.parent / "moved"
    folder.rename(moved)  # the model finds its weights wherever both lie
    x = np.ones((1, 3, 8, 8), np.float32)
    np.testing.assert_allclose(
        outputs(moved / "folded.onnx", x), outputs(path, x), rtol=1e-4, atol=1e-4
    )
    folded = moved / "folded.onnx"
    assert run("fold-bn", folded, "-o", moved / "again.onnx").exit_code == 0
    np.testing.assert_array_equal(outputs(moved / "again.onnx", x), outputs(folded, x))


def assert_pair(folder, name):
    """The model and its weights lie there, nothing else, and it names them by name alone."""
    assert sorted(path.name for path in folder.iterdir()) == [name, f"{name}.data"]
    model = onnx.load(folder / name, load_external_data=False)
    external = [t for t in model.graph.initializer if t.external_data]
    locations = {e.value for t in external for e in t.external_data if e.key == "location"}
    assert locations == {f"{name}.data"}


def test_a_model_too_large_for_one_file(run, source, folder, all_outside, monkeypatch):
    """Both models are then run from files; that limit is lowered, not reached."""
    monkeypatch.setattr(all_outside, "_SINGLE_FILE_BYTES", 100)
    result = run("fold-bn", source, "-o", folder / "folded.onnx", "--json")
    assert result.exit_code == 0, result.output
    assert load_json(FoldReport, result.stdout, where="stdout").comparison.passed
    assert_pair(folder, "folded.onnx")
    result = run("fold-bn", source, "--dry-run", "--json")
    assert load_json(FoldReport, result.stdout, where="stdout").comparison.passed
    assert_pair(folder, "folded.onnx")


def test_what_is_too_large_is_not_serialised(source, all_outside, monkeypatch):
    """As for a file of more than 2 GB of weights."""
    from onnx import ModelProto

    monkeypatch.setattr(all_outside, "_SINGLE_FILE_BYTES", 100)
    monkeypatch.setattr(all_outside, "_serialised", None)
    seen = []

    def open_and_note(model, spec):
        seen.append(model)
        assert not isinstance(model, ModelProto | bytes)
        return open_session(model, spec)

    open_session = all_outside.open_session
    monkeypatch.setattr(all_outside, "open_session", open_and_note)
    report = all_outside.fold_file(source, None)
    assert report.comparison.passed
    assert len(seen) == 2


@pytest.mark.parametrize("taken", ["folded.onnx", "folded.onnx.data"])
def test_neither_of_two_outputs_is_replaced_without_force(
    run, tmp_path, folder, all_outside, taken
):
    path = tmp_path / "model.onnx"
    with_external_weight(path, "weights.bin")
    (folder / taken).write_text("mine")
    assert run("fold-bn", path, "-o", folder / "folded.onnx").exit_code == 2
    assert [p.name for p in folder.iterdir()] == [taken]
    assert (folder / taken).read_text() == "mine"
    assert run("fold-bn", path, "-o", folder / "folded.onnx", "--force").exit_code == 0
    assert_pair(folder, "folded.onnx")


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../secret.bin",
        "sub/../../secret.bin",
        "C:\\secret.bin",
        "..\\secret.bin",
        "",
    ],
)
def test_weights_outside_the_folder_are_not_read(run, tmp_path, folder, location):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(432))
    with_external_weight(inside / "model.onnx", location, write=False)
    result = run("fold-bn", inside / "model.onnx", "-o", folder / "folded.onnx")
    assert_refused(result, folder, "lies outside the folder of the model")


def test_a_link_that_leads_outside_is_not_followed(run, tmp_path, folder):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(432))
    (inside / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with_external_weight(inside / "model.onnx", "weights.bin", write=False)
    result = run("fold-bn", inside / "model.onnx", "-o", folder / "folded.onnx")
    assert_refused(result, folder, "lies outside the folder of the model")


def test_weights_that_are_missing(run, tmp_path, folder):
    path = tmp_path / "model.onnx"
    with_external_weight(path, "weights.bin", write=False)
    result = run("fold-bn", path, "-o", folder / "folded.onnx")
    assert_refused(result, folder, "cannot be read")


def test_what_cannot_be_judged_is_not_written(run, tmp_path, folder):
    """An operator of a runtime's own: what the model means in float64 is not known."""
    path = tmp_path / "model.onnx"
    model = make_model(f"{FOLDABLE.replace('z =', 'u =')} z = FusedGelu (u)")
    model.graph.node[-1].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    onnx.save(model, path)
    result = run("fold-bn", path, "-o", folder / "folded.onnx")
    assert_refused(result, folder, "cannot be computed in float64")
    assert "fix:   see with --dry-run what would be folded" in result.stderr


def test_a_dry_run_reports_what_cannot_be_judged(run, tmp_path):
    path = tmp_path / "model.onnx"
    model = make_model(f"{FOLDABLE.replace('z =', 'u =')} z = FusedGelu (u)")
    model.graph.node[-1].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    onnx.save(model, path)
    result = run("fold-bn", path, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    report = load_json(FoldReport, result.stdout, where="stdout")
    assert (len(report.folded), report.comparison) == (1, None)
    assert "FusedGelu" in report.not_judged
    assert "not judged: The model cannot be computed" in run("fold-bn", path, "--dry-run").stdout
