"""What a job's machines fetch."""

import importlib.metadata
import io
import tarfile
import zipfile

import pytest

from switch_tf.errors import SettingError
from tpu.jobs import bundle as packing
from tpu.jobs.bundle import Files


def members(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def test_the_checkout_goes_along_with_its_versions():
    files = Files("A = 1\n")
    names = members(files.contents["code/switch_tf.tar.gz"])
    assert {"switch_tf/setup.py", "switch_tf/README.md", "switch_tf/tpu/jobs/startup.sh"} <= set(names)
    assert {"switch_tf/switch_tf/cli/main.py", "switch_tf/tasks/c4.py", "switch_tf/gin/runs/pretrain.gin"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert b"\ntensorflow-text==" in files.contents["constraints.txt"]


def test_the_same_files_go_to_the_same_folder():
    assert Files("A = 1\n").folder == Files("A = 1\n").folder != Files("A = 2\n").folder


def test_an_installed_package_becomes_a_wheel(monkeypatch, tmp_path):
    version = importlib.metadata.version("gin-config")
    packages = tmp_path / "site-packages"
    about = packages / "switch_tf-0.1.0.dist-info"
    texts = {
        "switch_tf/__init__.py": "",
        "switch_tf/__pycache__/__init__.cpython-311.pyc": "",
        "switch_tf-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: switch-tf\nVersion: 0.1.0\n",
    }
    record = "switch_tf-0.1.0.dist-info/RECORD"
    texts[record] = "".join(f"{name},,\n" for name in (*texts, record, "../../../bin/switch-tf"))
    for name, text in texts.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)
    monkeypatch.setattr(packing, "_ROOT", packages)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: importlib.metadata.PathDistribution(about))
    files = Files("A = 1\n")
    wheel = zipfile.ZipFile(io.BytesIO(files.contents["code/switch_tf-0.1.0-py3-none-any.whl"]))
    assert sorted(wheel.namelist()) == [
        "switch_tf-0.1.0.dist-info/METADATA",
        "switch_tf-0.1.0.dist-info/RECORD",
        "switch_tf/__init__.py",
    ]
    assert f"\ngin-config=={version}\n".encode() in files.contents["constraints.txt"]


def test_other_code_may_be_named(tmp_path):
    wheel = tmp_path / "switch_tf-9-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    assert Files("", str(wheel)).contents["code/switch_tf-9-py3-none-any.whl"] == b"wheel"
    checkout = tmp_path / "checkout"
    (checkout / "tasks").mkdir(parents=True)
    (checkout / "setup.py").write_text("")
    (checkout / "tasks" / "mine.py").write_text("")
    (checkout / "constraints.txt").write_text("mine==1\n")
    files = Files("", str(checkout))
    assert members(files.contents["code/switch_tf.tar.gz"]) == ["switch_tf/setup.py", "switch_tf/tasks/mine.py"]
    assert files.contents["constraints.txt"] == b"mine==1\n"


def test_modules_are_found_by_their_own_names(tmp_path):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_tasks.py").write_text("")
    files = Files("", modules=[str(tmp_path / "my_package"), str(tmp_path / "my_tasks.py")])
    assert members(files.contents["modules.tar.gz"]) == ["my_package/__init__.py", "my_tasks.py"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code": "nowhere"}, "code = 'nowhere' is not there."),
        ({"code": "{tmp_path}"}, "has no setup.py: give a checkout of switch_tf, or a wheel."),
        ({"code": "{tmp_path}/notes.txt"}, "is nothing that pip installs"),
        ({"modules": ["nowhere.py"]}, "modules = 'nowhere.py' is not there."),
        ({"modules": ["{tmp_path}/notes.txt"]}, "is neither a Python file nor a folder."),
    ],
)
def test_what_is_not_there_is_told(tmp_path, settings, message):
    (tmp_path / "notes.txt").write_text("")
    settings = {
        name: [item.format(tmp_path=tmp_path) for item in value]
        if isinstance(value, list)
        else value.format(tmp_path=tmp_path)
        for name, value in settings.items()
    }
    with pytest.raises(SettingError) as caught:
        Files("", **settings)
    assert message in str(caught.value)
