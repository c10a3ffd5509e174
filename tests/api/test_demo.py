"""The demo: the whole chain, shortened, and what it says where CUDA does not start."""

import pytest

from resdeploy.api import demo as demo_module
from resdeploy.api.demo import run_demo
from resdeploy.bundle.folder import read_bundle
from resdeploy.errors import ProviderError, ResdeployError
from resdeploy.recipe import adjust_recipe, load_recipe
from resdeploy.schema.bundles import DemoReport
from resdeploy.schema.codec import load_json


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(
        demo_module, "load_recipe", lambda name: adjust_recipe(load_recipe(name), epochs=3)
    )


def test_the_chain_passes_and_writes_what_it_says(short, tmp_path):
    stages = []
    report = run_demo(tmp_path / "demo", on_stage=stages.append)
    assert report.passed
    assert [s.stage for s in report.stages] == [
        "train",
        "fold and export",
        "verify",
        "bench",
        "bundle and check",
    ]
    assert all(s.outcome for s in report.stages)
    assert len(report.export.fold.folded) == 7
    for path in report.paths.values():
        assert (tmp_path / "demo" / path.rpartition("/")[2]).exists()
    written = (tmp_path / "demo" / "report.json").read_text()
    assert load_json(DemoReport, written, where="report.json") == report
    assert read_bundle(tmp_path / "demo" / "bundle").labels == tuple("0123456789")
    assert any("test accuracy" in stage for stage in stages)


def test_a_provider_that_does_not_start_is_named_with_its_reason(short, tmp_path, monkeypatch):
    genuine = demo_module.open_session

    def without_cuda(model, spec):
        if spec.provider == "cuda":
            raise ProviderError("no library of that name")
        return genuine(model, spec)

    monkeypatch.setattr(demo_module, "open_session", without_cuda)
    report = run_demo(tmp_path / "demo")
    assert report.unavailable == {"cuda": "no library of that name"}
    assert "cuda: not on this machine. no library of that name" in report.stages[2].outcome
    assert [r.spec.session.provider for r in report.bench] == ["cpu"]


def test_another_folder_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    for force in (False, True):
        with pytest.raises(ResdeployError):
            run_demo(tmp_path, force=force)
    assert (tmp_path / "thesis.txt").is_file()
