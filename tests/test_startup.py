"""What a command leaves out when it starts, or puts off, is there when it is needed."""

import subprocess
import sys

import pytest

from switch_tf import startup


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A deferred package whose own code imports one of its submodules and appends to a list that it is given."""
    folder = tmp_path / "a_deferred_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import sys\nsys.ran.append('package')\nfrom . import second\nvalue = second.value\n"
    )
    (folder / "first.py").write_text("value = 1\n")
    (folder / "second.py").write_text("import sys\nsys.ran.append('second')\nvalue = 2\n")
    monkeypatch.setattr(startup, "_DEFERRED", {folder.name})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "ran", [], raising=False)
    startup.defer_imports()
    yield folder.name
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_a_submodule_does_without_its_package(package):
    import a_deferred_package.first

    assert a_deferred_package.first.value == 1
    assert a_deferred_package.second.value == 2
    assert sys.ran == ["second"]


def test_a_package_runs_once_when_something_of_its_own_is_looked_up(package):
    import a_deferred_package

    assert sys.ran == []
    assert a_deferred_package.value == 2
    with pytest.raises(AttributeError, match=r"a_deferred_package.*missing"):
        _ = a_deferred_package.missing
    assert sys.ran == ["package", "second"]


def test_all_names_of_a_package_can_be_imported(package):
    names: dict[str, object] = {}
    exec("from a_deferred_package import *", names)
    assert names["value"] == 2


def test_a_command_imports_what_it_needs():
    program = [sys.executable, "-m", "tests.programs.starts_a_command"]
    found = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
    described = found.index("[]")
    assert any(line.startswith("parameters") for line in found[:described])
    assert found[described + 1 :] == ["['flax', 'jax', 'seqio.dataset_providers']", "0.0.20 Evaluator"]
