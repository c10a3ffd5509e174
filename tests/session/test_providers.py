"""The table of providers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import resdeploy
from resdeploy.errors import ResdeployError
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import TuneSpec
from resdeploy.session.providers import PROVIDERS, find_provider
from resdeploy.tune.space import sessions_for


def test_an_unknown_name_is_answered_with_the_names_there_are():
    with pytest.raises(ResdeployError, match="no provider 'gpu'") as caught:
        find_provider("gpu")
    for name in PROVIDERS:
        assert name in caught.value.fix


@pytest.mark.parametrize(("name", "provider"), PROVIDERS.items())
def test_each_entry_is_found_by_its_own_name_and_gives_options_of_text(name, provider):
    assert find_provider(name) is provider
    assert provider.name == name
    assert provider.ort_name.endswith("ExecutionProvider")
    options = provider.options(SessionSpec(provider=name))
    assert all(isinstance(text, str) for item in options.items() for text in item)


def test_tune_opens_a_provider_in_no_way_that_makes_no_difference_there():
    ways = {name: len(list(sessions_for(name, TuneSpec(threads=(1, 2))))) for name in PROVIDERS}
    assert ways == {
        "cpu": 6,
        "cuda": 4,
        "openvino": 2,
        "tensorrt": 2,
        "coreml": 1,
        "qnn": 1,
        "xnnpack": 2,
    }


def test_tf32_is_off_unless_asked_for():
    """ONNX Runtime's default is on, a thousand times the rounding error of float32."""
    cuda = find_provider("cuda")
    assert cuda.options(SessionSpec(provider="cuda"))["use_tf32"] == "0"
    assert cuda.options(SessionSpec(provider="cuda", use_tf32=True))["use_tf32"] == "1"


def test_cuda_searches_for_the_fastest_convolution_and_copies_in_order():
    options = find_provider("cuda").options(SessionSpec(provider="cuda"))
    assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert options["do_copy_in_default_stream"] == "1"
    assert options["arena_extend_strategy"] == "kSameAsRequested"


def test_the_table_can_be_read_without_a_runtime():
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from resdeploy.session.providers import PROVIDERS\n"
        "print(*PROVIDERS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == list(PROVIDERS)


# Words that name something else than a provider: torch's devices, the first of /proc/stat; and what
# the demo shows.
_OTHER_WORDS = {
    ("cuda", "training/loop.py"),
    ("cuda", "api/demo.py"),
    ("cpu", "machine/state.py"),
    # Other runtimes of the same name.
    ("openvino", "bench/runners.py"),
    ("openvino", "bench/openvino_runner.py"),
    ("cuda", "bench/torch_runner.py"),
    # The command to suggest after one without options; the name of a board.
    ("cpu", "cli/next_step.py"),
    ("qnn", "machine/boards.py"),
}


def provider_words(tree):
    """Yield the strings of a module that are names of providers; "cpu" where it decides."""
    names = {*PROVIDERS, *(provider.ort_name for provider in PROVIDERS.values())}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in names - {"cpu"}:
            yield node.value
        if isinstance(node, ast.Compare | ast.Match):
            inner = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            yield from inner & {"cpu"}


def test_what_depends_on_the_provider_stands_in_the_table_and_nowhere_else():
    package = Path(resdeploy.__file__).parent
    found = {
        (word, path.relative_to(package).as_posix())
        for path in package.rglob("*.py")
        for word in provider_words(ast.parse(path.read_text(encoding="utf-8")))
    }
    elsewhere = {where for where in found if where[1] != "session/providers.py"}
    assert elsewhere == _OTHER_WORDS
