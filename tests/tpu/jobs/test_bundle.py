"""The bundle that a job's hosts download."""

import importlib.metadata
import io
import tarfile
import zipfile

import pytest

import tpu.jobs.bundle
from switch_tf.errors import SettingError
from tpu.jobs.bundle import Bundle


def members(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def test_a_bundle_has_the_checkout_and_its_constraints():
    bundle = Bundle("A = 1\n")
    names = members(bundle.contents["code/switch_tf.tar.gz"])
    assert {"switch_tf/setup.py", "switch_tf/README.md", "switch_tf/tpu/jobs/startup.sh"} <= set(names)
    assert {"switch_tf/switch_tf/cli/main.py", "switch_tf/tasks/c4.py", "switch_tf/gin/runs/pretrain.gin"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert b"\ntensorflow-text==" in bundle.contents["constraints.txt"]


def test_equal_bundles_have_the_same_folder():
    assert Bundle("A = 1\n").folder == Bundle("A = 1\n").folder != Bundle("A = 2\n").folder


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
    monkeypatch.setattr(tpu.jobs.bundle, "_ROOT", packages)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: importlib.metadata.PathDistribution(about))
    bundle = Bundle("A = 1\n")
    wheel = zipfile.ZipFile(io.BytesIO(bundle.contents["code/switch_tf-0.1.0-py3-none-any.whl"]))
    assert sorted(wheel.namelist()) == [
        "switch_tf-0.1.0.dist-info/METADATA",
        "switch_tf-0.1.0.dist-info/RECORD",
        "switch_tf/__init__.py",
    ]
    assert f"\ngin-config=={version}\n".encode() in bundle.contents["constraints.txt"]


def test_code_may_be_a_wheel_or_another_checkout(tmp_path):
    wheel = tmp_path / "switch_tf-9-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    assert Bundle("", str(wheel)).contents["code/switch_tf-9-py3-none-any.whl"] == b"wheel"
    checkout = tmp_path / "checkout"
    (checkout / "tasks").mkdir(parents=True)
    (checkout / "setup.py").write_text("")
    (checkout / "tasks" / "mine.py").write_text("")
    (checkout / "constraints.txt").write_text("mine==1\n")
    bundle = Bundle("", str(checkout))
    assert members(bundle.contents["code/switch_tf.tar.gz"]) == ["switch_tf/setup.py", "switch_tf/tasks/mine.py"]
    assert bundle.contents["constraints.txt"] == b"mine==1\n"


def test_modules_keep_their_names_and_hidden_files_stay_here(tmp_path):
    (tmp_path / "my_package").mkdir()
    for hidden in (".git", "data"):
        (tmp_path / "my_package" / hidden).mkdir()
    for name in ("__init__.py", ".git/config", ".env", "data/.netrc"):
        (tmp_path / "my_package" / name).write_text("")
    (tmp_path / "my_tasks.py").write_text("")
    bundle = Bundle("", modules=[str(tmp_path / "my_package"), str(tmp_path / "my_tasks.py")])
    assert members(bundle.contents["modules.tar.gz"]) == ["my_package/__init__.py", "my_tasks.py"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code": "nowhere"}, "code = 'nowhere' does not exist."),
        ({"code": "{tmp_path}"}, "has no setup.py: give a checkout of switch_tf, or a wheel."),
        ({"code": "{tmp_path}/notes.txt"}, "is not something that pip can install"),
        ({"modules": ["nowhere.py"]}, "modules = 'nowhere.py' does not exist."),
        ({"modules": ["{tmp_path}/notes.txt"]}, "is neither a Python file nor a folder."),
    ],
)
def test_wrong_files_are_an_error(tmp_path, settings, message):
    (tmp_path / "notes.txt").write_text("")
    settings = {
        name: [item.format(tmp_path=tmp_path) for item in value]
        if isinstance(value, list)
        else value.format(tmp_path=tmp_path)
        for name, value in settings.items()
    }
    with pytest.raises(SettingError) as caught:
        Bundle("", **settings)
    assert message in str(caught.value)
