"""`verify` with all its layers of evidence, as a user runs it."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from resdeploy.schema.codec import load_json
from resdeploy.schema.verdicts import VerifyReport


def change_weight(path, name: str, change) -> None:
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)


def test_every_layer_of_evidence_is_there(run, checkpoint, exported):
    result = run("verify", exported, "--reference", checkpoint, "--json")
    assert result.exit_code == 0, result.output
    report = load_json(VerifyReport, result.stdout, where="stdout")
    assert report.structure.isomorphic
    assert report.static.max_ulp <= report.static.limit_ulp < 0.51
    assert report.missing == {}
    (verdict,) = report.verdicts
    assert verdict.node_local.passed
    assert len(verdict.node_local.nodes) == len(report.static.layers) == 10
    assert "node_local" not in verdict.missing


def test_the_text_says_what_was_compared(run, checkpoint, exported):
    result = run("verify", exported, "--reference", checkpoint)
    assert "operators, as in the reference" in result.stdout
    assert "weights: 10 layers within 0.50 ulp of their exact values" in result.stdout
    assert "cpu: 10 layers run on their own inputs" in result.stdout


def test_a_single_wrong_bit_fails_and_names_its_layer(run, checkpoint, exported, tmp_path):
    def flip(array):
        bits = array.reshape(-1).view(np.uint32)
        bits[7] ^= np.uint32(1 << 4)  # 16 ulp, which no output shows

    change_weight(exported, "stack2.conv2.weight", flip)
    result = run("verify", exported, "--reference", checkpoint)
    assert result.exit_code == 1
    assert "a weight of `stack2.conv2/Conv` is 16" in result.stdout
    assert "FAIL" in result.stdout


def test_the_first_faulty_node_is_written_with_its_inputs(
    run, checkpoint, exported, tmp_path, wrong_kernels
):
    faults = tmp_path / "faults"
    result = run("verify", exported, "--reference", checkpoint, "--artifacts", faults)
    assert result.exit_code == 1
    assert {p.name for p in (faults / "cpu").iterdir()} == {
        "conv1_Conv.onnx",
        "conv1_Conv.npz",
    }
    assert "cpu: the first faulty node is in" in result.stderr


def test_another_onnx_file_is_a_reference(run, checkpoint, exported, tmp_path):
    unfolded = tmp_path / "unfolded.onnx"
    assert run("export", checkpoint, "-o", unfolded, "--no-fold").exit_code == 0
    result = run("verify", exported, "--reference", unfolded)
    assert result.exit_code == 0, result.output
    assert "unfolded.onnx, in float64" in result.stdout
    assert "weights: 10 layers within" in result.stdout
    change_weight(exported, "fc.bias", lambda array: np.add(array, 1, array))
    assert run("verify", exported, "--reference", unfolded).exit_code == 1


def test_an_onnx_reference_has_inputs_of_its_own(run, exported):
    result = run("verify", exported, "--reference", exported, "--data", "digits")
    assert result.exit_code == 2
    assert "seeded inputs" in result.stderr


@pytest.fixture
def folder_of_images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def verified_on(run, exported, *arguments):
    result = run("verify", exported, "--no-conformance", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return load_json(VerifyReport, result.stdout, where="stdout").golden


def test_a_folder_of_images_is_verified_on(run, checkpoint, exported, folder_of_images):
    arguments = ("--reference", checkpoint, "--inputs", folder_of_images)
    golden = verified_on(run, exported, *arguments)
    assert (golden.num_inputs, golden.inputs) == (3, "3 inputs of images")
    assert verified_on(run, exported, *arguments, "--num-inputs", "2").num_inputs == 2


def test_a_folder_of_arrays_is_verified_on_whatever_the_reference(
    run, checkpoint, exported, tmp_path
):
    folder = tmp_path / "arrays"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, count in enumerate((2, 3)):
        inputs = rng.standard_normal((count, 1, 8, 8)).astype(np.float32)
        np.save(folder / f"{index}.npy", inputs)
    for reference in (checkpoint, exported):
        golden = verified_on(run, exported, "--reference", reference, "--inputs", folder)
        assert (golden.num_inputs, golden.inputs) == (5, "5 inputs of arrays")


@pytest.mark.parametrize("of", ["checkpoint", "exported"])
def test_inputs_of_another_shape_are_refused(run, request, exported, tmp_path, of):
    reference = request.getfixturevalue(of)
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 9, 9), dtype=np.float32))
    arguments = ("--reference", reference, "--inputs", tmp_path / "x.npy")
    result = run("verify", exported, *arguments)
    assert result.exit_code == 2
    assert "1, 9, 9)" in result.stderr


def test_arrays_of_different_shapes_are_refused(run, exported, tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    for index, size in enumerate((8, 9)):
        np.save(folder / f"{index}.npy", np.zeros((1, 1, size, size), dtype=np.float32))
    result = run("verify", exported, "--reference", exported, "--inputs", folder)
    assert result.exit_code == 2
    assert "give inputs of one shape" in result.stderr


def test_data_and_inputs_exclude_each_other(run, checkpoint, exported, folder_of_images):
    both = ("--data", "digits", "--inputs", folder_of_images)
    result = run("verify", exported, "--reference", checkpoint, *both)
    assert result.exit_code == 2
    assert "give one" in result.stderr


def test_an_unfolded_export_has_plain_convolutions(run, checkpoint, tmp_path):
    path = tmp_path / "unfolded.onnx"
    run("export", checkpoint, "-o", path, "--no-fold")
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert not operators & {"CastLike", "Expand", "Cast"}
    assert "0 refused" in run("fold-bn", path, "--dry-run").stdout


@pytest.mark.parametrize("missing", ["structure", "static", "node_local"])
def test_what_a_golden_file_cannot_show_is_stated(run, checkpoint, exported, tmp_path, missing):
    from resdeploy.export.golden import golden_for
    from resdeploy.export.source import load_source
    from resdeploy.schema.recipes import SourceSpec
    from resdeploy.verify.golden_file import save_golden

    golden = tmp_path / "golden.npz"
    save_golden(golden, golden_for(load_source(SourceSpec(path=str(checkpoint))), num_inputs=4))
    result = run("verify", exported, "--golden", golden, "--json")
    report = load_json(VerifyReport, result.stdout, where="stdout")
    stated = {**report.missing, **report.verdicts[0].missing}
    assert "golden file" in stated[missing]
