"""The commands of the device, as a user runs them: bundle to check, predict, probe and doctor."""

import json
import shutil
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image

from resdeploy.bundle import evaluate
from resdeploy.bundle.archive import write_archive
from resdeploy.cli import cli
from resdeploy.errors import ResdeployError
from resdeploy.schema.benchmarks import BenchReport
from resdeploy.schema.bundles import CheckReport, Manifest, PredictReport
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.evaluations import EvaluateReport
from resdeploy.schema.exports import ExportReport
from resdeploy.schema.machines import DoctorReport, ProbeReport
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess
from resdeploy.session import session
from resdeploy.training.checkpoint import save_checkpoint
from resdeploy.verify import outputs

FEW = ("--num-inputs", "4")
FILES = ["README.md", "golden.npz", "labels.txt", "manifest.json", "model.onnx"]


@pytest.fixture(scope="module")
def packed(network, tmp_path_factory):
    """The bytes of a bundle in one file, and the checkpoint that it was made of: exported once."""
    folder = tmp_path_factory.mktemp("packed")
    info = CheckpointInfo(
        model=ModelSpec(arch="resnet8_tiny", num_classes=10, options={"in_channels": 1}),
        preprocess=Preprocess(input_shape=(1, 8, 8), divisor=255.0, color="gray"),
        labels=tuple(map(str, range(10))),
    )
    save_checkpoint(folder / "checkpoint.safetensors", network, info)
    arguments = [folder / "checkpoint.safetensors", "-o", folder / "digits.zip", *FEW]
    result = CliRunner().invoke(cli, ["bundle", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def archive(packed, tmp_path):
    return shutil.copy(packed / "digits.zip", tmp_path / "digits.zip")


@pytest.fixture
def bundle(packed, tmp_path):
    """The same as a folder, as another tool unpacks it."""
    with zipfile.ZipFile(packed / "digits.zip") as file:
        file.extractall(tmp_path / "digits")
    return tmp_path / "digits"


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def target(tmp_path, run):
    """Write what a machine with another runtime would say of itself."""
    assert run("probe", "-o", tmp_path / "here.json").exit_code == 0

    def write(runtime_version):
        record = json.loads((tmp_path / "here.json").read_text())
        record["runtime_version"] = runtime_version
        path = tmp_path / "target.json"
        path.write_text(json.dumps(record))
        return path

    return write


# --- the archive ---------------------------------------------------------------------------------


def test_an_archive_and_what_is_unpacked_of_it_are_one_bundle(run, archive, bundle):
    for path in (archive, bundle):
        result = run("check", path, "--json")
        assert result.exit_code == 0, result.output
        report = load_json(CheckReport, result.stdout, where="stdout")
        assert (report.name, report.num_files) == ("digits", 4)


def test_an_existing_archive_is_kept_without_force(packed, tmp_path):
    before = (packed / "digits.zip").read_bytes()
    with zipfile.ZipFile(packed / "digits.zip") as file:
        file.extractall(tmp_path / "digits")
    with pytest.raises(ResdeployError, match="exists already"):
        write_archive(tmp_path / "digits", packed / "digits.zip")
    assert (packed / "digits.zip").read_bytes() == before


def test_a_flipped_byte_anywhere_exits_2_names_the_file_and_runs_nothing(
    run, bundle, archive, monkeypatch
):
    """A sample of what tests/test_bundle*.py try at every byte, through the command line."""

    def ran(*_, **__):
        pytest.fail("a session was opened")

    for module in (outputs, session, evaluate):
        monkeypatch.setattr(module, "open_session", ran)
    packed, photo = archive.read_bytes(), archive.with_name("x.png")
    photo.touch()
    for name in FILES:
        path = bundle / name
        raw = path.read_bytes()
        for position in (0, len(raw) // 3, len(raw) // 2, len(raw) - 2, len(raw) - 1):
            damaged = bytes([raw[position] ^ 1])
            path.write_bytes(raw[:position] + damaged + raw[position + 1 :])
            for arguments in (("check", bundle), ("predict", bundle, photo)):
                result = run(*arguments)
                assert (result.exit_code, result.stdout) == (2, "")
                assert name in result.stderr
            at = packed.index(raw) + position
            archive.write_bytes(packed[:at] + damaged + packed[at + 1 :])
            result = run("check", archive)
            assert (result.exit_code, result.stdout) == (2, "")
            assert name in result.stderr
        path.write_bytes(raw)
        archive.write_bytes(packed)


# --- evaluate ------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "labelled.npz", x=x, y=rng.integers(0, 10, 40))
    return tmp_path / "labelled.npz"


def test_evaluate_takes_a_bundle_in_either_form_and_its_onnx_file_alike(
    run, archive, bundle, labelled
):
    """The ONNX file knows its preprocessing by itself."""
    results = []
    for model in (archive, bundle, bundle / "model.onnx"):
        result = run("evaluate", model, "--data", labelled, "--json")
        assert result.exit_code == 0, result.output
        report = load_json(EvaluateReport, result.stdout, where="stdout")
        results.append(report.model.result)
    assert results[0] == results[1] == results[2]
    assert results[0].num_samples == 40


def test_evaluate_against_itself_finds_no_flip_and_asks_for_more_samples(run, archive, labelled):
    arguments = ("evaluate", archive, "--data", labelled, "--against", archive, "--max-drop")
    result = run(*arguments, "10")
    assert result.exit_code == 0, result.output
    assert "drop: +0.00 points, 95% interval -8.81 to +8.81" in result.stdout
    assert "no sample changed its class" in result.stdout
    assert "PASS: the drop is at most 10 points" in result.stdout
    result = run(*arguments, "1")
    assert result.exit_code == 1
    assert "a drop of at most 1 point is not shown; more samples would tell" in result.stdout


def test_evaluate_lists_what_changed_by_its_name(run, archive, bundle, labelled, tmp_path):
    """The other model has its largest logit turned into its smallest."""
    model = onnx.load(bundle / "model.onnx")
    (output,) = model.graph.output
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Neg", ["before"], [output.name]))
    onnx.save(model, tmp_path / "turned.onnx")
    result = run(
        *("evaluate", tmp_path / "turned.onnx", "--data", labelled, "--against", archive),
        *("--max-drop", "0"),
    )
    assert result.exit_code == 1
    assert "40 samples changed their class" in result.stdout
    assert "labelled.npz[19]" in result.stdout.replace("\n", "")
    assert "labelled.npz[20]" not in result.stdout
    assert "and 20 more (--json has them all)" in result.stdout


def test_evaluate_says_what_it_needs(run, archive, tmp_path):
    np.savez(tmp_path / "bare.npz", x=np.zeros((2, 1, 8, 8), np.uint8))
    result = run("evaluate", archive, "--data", tmp_path / "bare.npz")
    assert result.exit_code == 2
    assert "have no labels" in result.stderr
    result = run("evaluate", archive, "--data", tmp_path / "bare.npz", "--max-drop", "1")
    assert result.exit_code == 2
    assert "--against" in result.stderr


def test_bench_times_the_model_of_a_bundle_if_every_byte_is_right(run, archive, bundle):
    for path in (archive, bundle):
        result = run("bench", path, "--runs", "20", "--json")
        assert result.exit_code == 0, result.output
        report = load_json(BenchReport, result.stdout, where="stdout")
        assert report.results[0].model.path == "model.onnx"
    (bundle / "labels.txt").write_text("0\n")
    assert run("bench", bundle, "--runs", "20").exit_code == 2


# --- predict -------------------------------------------------------------------------------------


def test_predict_names_the_classes_with_their_probabilities(run, bundle, photo):
    result = run("predict", bundle, photo, "--top", "3")
    assert result.exit_code == 0, result.output
    assert (
        str(photo) in result.stdout.replace("\n", "").replace("│", "") or "photo" in result.stdout
    )
    assert result.stdout.count("%") == 3


def test_predict_as_json_is_one_record(run, archive, photo, tmp_path):
    result = run("predict", archive, photo, tmp_path, "--json")
    assert result.exit_code == 0, result.output
    report = load_json(PredictReport, result.stdout, where="stdout")
    assert [prediction.input for prediction in report.predictions] == [str(photo)] * 2
    first = report.predictions[0].classes
    assert len(first) == 5
    assert first[0].label == str(first[0].index)


def test_predict_says_what_is_wrong_with_an_input(run, bundle, tmp_path):
    (tmp_path / "x.png").write_bytes(b"hello")
    result = run("predict", bundle, tmp_path / "x.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be read" in result.stderr
    assert "x.png" in result.stderr
    assert run("predict", bundle).exit_code == 2


def test_predict_on_a_provider_that_does_not_start_exits_3(run, bundle, photo, no_cuda):
    result = run("predict", bundle, photo, "--provider", "cuda")
    assert (result.exit_code, result.stdout) == (3, "")


# --- probe and doctor ----------------------------------------------------------------------------


def test_probe_writes_the_record_that_it_prints(run, tmp_path):
    result = run("probe", "-o", tmp_path / "target.json", "--json")
    assert result.exit_code == 0, result.output
    report = load_json(ProbeReport, result.stdout, where="stdout")
    assert report.runtime_version == onnxruntime.__version__
    assert (tmp_path / "target.json").read_text() == dump_json(report) + "\n"
    assert run("probe", "-o", tmp_path / "target.json").exit_code == 2
    result = run("probe", "-o", tmp_path / "target.json", "--force")
    assert result.exit_code == 0
    assert "reads opset" in result.stdout


def test_probe_prints_the_extra_that_a_provider_needs(run, no_cuda):
    """As the brackets of an extra are markup to the library that draws tables."""
    assert "onnxruntime-gpu[cuda,cudnn]" in run("probe").stdout


def test_doctor_exits_0_if_all_is_well_and_3_if_not(run, no_cuda):
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert "all is well for cpu" in result.stdout
    result = run("doctor", "--provider", "cpu", "--provider", "cuda", "--json")
    assert result.exit_code == 3
    report = load_json(DoctorReport, result.stdout, where="stdout")
    assert [f.subject for f in report.findings if f.verdict == "fault"] == ["cuda"]
    result = run("doctor", "--provider", "cuda")
    assert "fix: " in result.stdout
    assert "1 fault for cuda" in result.stdout


# --- export --for --------------------------------------------------------------------------------


def test_export_for_a_target_is_in_a_form_that_its_runtime_reads(run, checkpoint, target, tmp_path):
    out = tmp_path / "model.onnx"
    result = run("export", checkpoint, "-o", out, "--for", target("1.13.1"), "--json")
    assert result.exit_code == 0, result.output
    report = load_json(ExportReport, result.stdout, where="stdout")
    assert (report.spec.opset, report.spec.newest_ir_version) == (17, 8)
    model = onnx.load(out)
    assert model.opset_import[0].version == 17
    assert model.ir_version <= 8


def test_an_opset_that_the_target_does_not_read_is_refused(run, checkpoint, target, tmp_path):
    out = tmp_path / "model.onnx"
    result = run("export", checkpoint, "-o", out, "--for", target("1.18.0"), "--opset", "22")
    assert result.exit_code == 2
    assert "1.18.0 reads opset 21 at the most" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("text", [None, "", "{}", '{"kind": "ExportReport", "schema_version": 1}'])
def test_a_target_that_is_no_record_is_refused(run, checkpoint, tmp_path, text):
    if text is not None:
        (tmp_path / "target.json").write_text(text)
    out = tmp_path / "model.onnx"
    result = run("export", checkpoint, "-o", out, "--for", tmp_path / "target.json")
    assert result.exit_code == 2
    assert "target.json" in result.stderr
    assert not out.exists()


# --- other layouts -------------------------------------------------------------------------------


def test_the_same_bytes_again_and_the_other_layouts_that_are_asked_for(run, packed, tmp_path):
    outputs = {name: tmp_path / name for name in ("triton", "onnx-test-data", "ort-format")}
    options = [part for name, path in outputs.items() for part in (f"--{name}", path)]
    source, again = packed / "checkpoint.safetensors", tmp_path / "digits.zip"
    result = run("bundle", source, "-o", again, *FEW, *options, "--json")
    assert result.exit_code == 0, result.output
    assert load_json(Manifest, result.stdout, where="stdout").name == "digits"
    assert again.read_bytes() == (packed / "digits.zip").read_bytes()
    found = sorted(
        str(path.relative_to(tmp_path))
        for folder in outputs.values()
        for path in folder.rglob("*")
        if path.is_file()
    )
    assert found == [
        "onnx-test-data/model.onnx",
        "onnx-test-data/test_data_set_0/input_0.pb",
        "onnx-test-data/test_data_set_0/output_0.pb",
        "ort-format/model.ort",
        "ort-format/model.required_operators.config",
        "triton/digits/1/model.onnx",
        "triton/digits/config.pbtxt",
        "triton/digits/labels.txt",
    ]


# --- embedded preprocessing ----------------------------------------------------------------------


def test_a_bundle_with_its_preprocessing_inside_checks_predicts_evaluates_and_times(
    run, packed, archive, photo, labelled, tmp_path
):
    bundle = tmp_path / "pixels"
    source = packed / "checkpoint.safetensors"
    result = run("bundle", source, "-o", bundle, "--preprocess", "embed", *FEW)
    assert result.exit_code == 0, result.output
    assert run("check", bundle).exit_code == 0
    verified = run("verify", bundle / "model.onnx", "--reference", source, *FEW)
    assert verified.exit_code == 0, verified.output
    assert "4 seeded images" in verified.stdout
    said = []
    for model in (archive, bundle):
        result = run("predict", model, photo, labelled, "--top", 1, "--json")
        assert result.exit_code == 0, result.output
        report = load_json(PredictReport, result.stdout, where="stdout")
        said.append([prediction.classes[0].index for prediction in report.predictions])
    assert said[0] == said[1]
    assert len(said[0]) == 41
    result = run("evaluate", bundle, "--data", labelled, "--against", archive, "--json")
    assert result.exit_code == 0, result.output
    assert load_json(EvaluateReport, result.stdout, where="stdout").paired.flips == ()
    timed = run("bench", bundle / "model.onnx", "--runs", "20", "--json")
    assert timed.exit_code == 0, timed.output


def test_what_cannot_be_embedded_is_said(run, packed, tmp_path):
    arguments = ("export", "--model", "torch.nn:Identity", "--input", "3,8,8")
    result = run(*arguments, "-o", tmp_path / "x.onnx", "--preprocess", "embed")
    assert result.exit_code == 2
    assert "nothing to embed" in result.stderr
