"""--model: functions, classes, instances, files, TorchScript programs; and what a typo is told."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export.export import export_onnx
from resdeploy.export.factory import is_torchscript, load_torchscript, own_module
from resdeploy.export.source import model_of_module
from resdeploy.schema.exports import ExportSpec

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SHAPE = (3, 8, 8)
MODELS = """
import dataclasses
from torch import nn

@dataclasses.dataclass
class Settings:
    width: int = 4

class Net(nn.Sequential):
    def __init__(self, width=Settings().width):
        super().__init__(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))

class Wide(Net):
    def __init__(self, width, *, depth):
        super().__init__(width)

def build(): return Net()
def build_model(): return Net()
def of(width): return Net(width)
def number(): return 3
def broken(): raise RuntimeError("no weights here")
instance = Net()
_hidden = Net()
THREE = 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_models", raising=False)
    return "own_models"


@pytest.mark.parametrize("name", ["build", "Net", "instance"])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_function_a_class_and_an_instance_are_modules_in_eval_mode(
    models, tmp_path, name, as_file
):
    place = tmp_path / "own_models.py" if as_file else models
    module = own_module(f"{place}:{name}", SHAPE)
    assert type(module).__name__ == "Net"
    assert not any(part.training for part in module.modules())


def test_a_file_may_import_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "a_neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "of_files.py").write_text(
        "from torch import nn\nimport a_neighbour\n"
        "def net(): return nn.Linear(3, a_neighbour.WIDTH)\n"
    )
    assert own_module(f"{tmp_path}/of_files.py:net", (3,)).out_features == 5


def test_two_files_of_one_name_are_two_modules(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    for width in (4, 5):
        (tmp_path / str(width)).mkdir()
        (tmp_path / str(width) / "twice.py").write_text(
            f"from torch import nn\ndef net(): return nn.Linear(3, {width})\n"
        )
    widths = [own_module(f"{tmp_path}/{width}/twice.py:net", (3,)).out_features for width in (4, 5)]
    assert widths == [4, 5]


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("{0}:biuld", "no 'biuld' in", "did you mean build"),
        ("{0}:net", "no 'net' in", "did you mean Net?"),
        ("{0}:zzz", "no 'zzz' in", "Net or Wide or build"),
        ("{0}", "name of the model in own_models is missing", "--model own_models:Net or :Wide"),
        ("{0}:", "name of the model in own_models is missing", ":instance"),
        ("{0}:of", "of needs arguments: width", "def build(): return of(…)"),
        ("{0}:Wide", "Wide needs arguments: width, depth", "def build(): return Wide(…)"),
        ("{0}:broken", "RuntimeError: no weights here", None),
        ("{0}s:build", "no Python module 'own_modelss' here", "--model path/to/file.py:NAME"),
        ("absent/models.py:build", "There is no such file", "path/to/file.py:NAME"),
    ],
)
def test_what_cannot_be_made_is_told_what_to_give(models, text, message, fix):
    with pytest.raises(ResdeployError, match=message) as caught:
        own_module(text.format(models), SHAPE)
    assert (fix or "") in (caught.value.fix or "")
    assert caught.value.where == f"--model {text.format(models)}"


@pytest.mark.parametrize(
    ("name", "message"), [("number", "returned int"), ("THREE", "This is a int, neither")]
)
def test_it_must_be_a_torch_module(models, name, message):
    with pytest.raises(UnsupportedModelError, match=message):
        own_module(f"{models}:{name}", SHAPE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import an_absent_package", "ModuleNotFoundError: No module named 'an_absent_package'"),
        ("open('absent.txt')", "FileNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_file_that_fails_says_how(tmp_path, monkeypatch, line, message):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "failing.py").write_text(line + "\n")
    with pytest.raises(ResdeployError, match=message):
        own_module(f"{tmp_path}/failing.py:build", SHAPE)


# --- TorchScript ---------------------------------------------------------------------------------


class Branched(nn.Module):
    """A network whose script keeps what a trace cannot: a shape, and a method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = F.max_pool2d(x, 2)
        return self.fc(x.mean((2, 3)).view(x.size(0), -1))


def saved(path, *, script):
    torch.manual_seed(0)
    module = Branched()
    nn.init.uniform_(module.bn.running_var, 0.5, 1.5)
    module.eval()
    program = (
        torch.jit.script(module) if script else torch.jit.trace(module, torch.randn(2, *SHAPE))
    )
    program.save(path)
    return module


@pytest.mark.parametrize("script", [False, True])
def test_a_torchscript_program_computes_the_same_for_any_batch(tmp_path, script):
    path = tmp_path / "net.pt"
    module = saved(path, script=script)
    loaded = own_module(str(path), SHAPE)
    assert not loaded.training
    x = torch.randn(5, *SHAPE)
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    assert {"conv.weight", "bn.running_var", "fc.bias"} <= set(loaded.state_dict())


def test_a_torchscript_program_exports_folded_and_verified(tmp_path):
    saved(tmp_path / "net.pt", script=True)
    source = model_of_module(load_torchscript(tmp_path / "net.pt", SHAPE), SHAPE)
    report = export_onnx(source, ExportSpec(), tmp_path / "net.onnx")
    assert [site.site for site in report.fold.folded] == ["bn"]
    assert report.verification.passed


def test_a_program_that_cannot_be_a_graph_is_refused(tmp_path):
    class Loops(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while bool(x.sum() > 1):
                x = x / 2
            return x

    torch.jit.script(Loops()).save(tmp_path / "loops.pt")
    with pytest.raises(UnsupportedModelError, match="cannot turn this TorchScript") as caught:
        load_torchscript(tmp_path / "loops.pt", SHAPE)
    assert "--model package.module:NAME" in caught.value.fix


def test_a_file_of_weights_is_no_program(tmp_path):
    torch.save(Branched().state_dict(), tmp_path / "weights.pt")
    assert not is_torchscript(tmp_path / "weights.pt")
    with pytest.raises(ResdeployError, match="no TorchScript program") as caught:
        own_module(str(tmp_path / "weights.pt"), SHAPE)
    assert "--arch" in caught.value.fix


def test_a_file_that_is_no_archive_is_no_program(tmp_path):
    (tmp_path / "noise.pt").write_bytes(b"not an archive")
    assert not is_torchscript(tmp_path / "noise.pt")
