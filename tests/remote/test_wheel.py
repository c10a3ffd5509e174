"""The wheel made of the running package: the same bytes each time, and what pip wants."""

import base64
import csv
import hashlib
import importlib.metadata
import io
import shutil
import zipfile

import pytest

import resdeploy
from resdeploy.remote import wheel as wheel_module
from resdeploy.remote.wheel import write_wheel


@pytest.fixture
def wheel(tmp_path):
    return write_wheel(tmp_path)


def metadata_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = f"resdeploy-{resdeploy.__version__}.dist-info/METADATA"
        return archive.read(name).decode()


def test_the_same_files_give_the_same_bytes(wheel, tmp_path):
    (tmp_path / "again").mkdir()
    assert write_wheel(tmp_path / "again").read_bytes() == wheel.read_bytes()
    assert wheel.name == f"resdeploy-{resdeploy.__version__}-py3-none-any.whl"


def test_every_file_is_in_the_record_with_its_digest(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = next(name for name in names if name.endswith("/RECORD"))
        rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(archive.read(record).decode()))}
        assert sorted(rows) == sorted(names)
        for name in set(names) - {record}:
            content = archive.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
            assert rows[name] == [f"sha256={digest.rstrip('=')}", str(len(content))]
    of_package = [name for name in names if ".dist-info/" not in name]
    assert of_package == sorted(of_package)
    assert "resdeploy/models/digits-resnet8/recipe.toml" in names
    assert "resdeploy/remote/remote_job.py" in names
    assert not [name for name in names if "__pycache__" in name]


def test_it_needs_what_the_project_says(wheel):
    text = metadata_in(wheel)
    assert f"Version: {resdeploy.__version__}\n" in text
    assert "Requires-Dist: numpy>=" in text
    assert "Requires-Dist: onnxruntime>=1.18; extra == 'cpu'\n" in text
    assert "Provides-Extra: cpu\n" in text
    dev = "(sys_platform == 'linux' and platform_machine == 'x86_64') and extra == 'dev'"
    assert f"Requires-Dist: mlcommons-loadgen>=5.1; {dev}\n" in text


def test_an_installed_package_needs_what_its_metadata_says(tmp_path, monkeypatch):
    """Away from a checkout, with its files alone."""
    package = tmp_path / "site" / "resdeploy"
    package.mkdir(parents=True)
    shutil.copy(resdeploy.__file__, package)
    installed = importlib.metadata.Distribution.at(_dist_info(tmp_path / "site")).metadata
    monkeypatch.setattr(resdeploy, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(wheel_module.importlib.metadata, "metadata", lambda _: installed)
    text = metadata_in(write_wheel(tmp_path))
    assert "Requires-Python: >=3.11\n" in text
    assert "Requires-Dist: onnxruntime; extra == 'cpu'\n" in text
    assert "Provides-Extra: cpu\n" in text


def _dist_info(site):
    folder = site / "resdeploy-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: resdeploy\nVersion: 0\nRequires-Python: >=3.11\n"
        "Provides-Extra: cpu\nRequires-Dist: onnxruntime; extra == 'cpu'\n"
    )
    return folder
