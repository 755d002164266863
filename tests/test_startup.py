"""What a command leaves out when it starts, or puts off, is there when it is needed."""

import concurrent.futures
import importlib
import platform
import subprocess
import sys

import pytest

from switch_tf import startup


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of a deferred package, whose own code imports a submodule and notes in `sys.ran` that it ran."""
    folder = tmp_path / "a_deferred_package"
    folder.mkdir()
    own = ["import sys", "sys.ran.append('package')", "from . import second", "value = second.value"]
    (folder / "__init__.py").write_text("\n".join(own))
    (folder / "first.py").write_text("value = 1\n")
    (folder / "second.py").write_text("import sys\nsys.ran.append('second')\nvalue = 2\n")
    monkeypatch.setattr(startup, "_DEFERRED", {folder.name})
    others = [finder for finder in sys.meta_path if not isinstance(finder, startup._Deferring)]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "ran", [], raising=False)
    startup.defer_imports()
    yield folder
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


def test_a_package_that_fails_says_why_each_time(package):
    import a_deferred_package

    (package / "second.py").write_text("import a_missing_package")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="a_missing_package"):
            _ = a_deferred_package.value
    (package / "second.py").write_text("import sys\n\nvalue = sys.no_such_attribute")
    importlib.invalidate_caches()
    for _ in range(2):
        with pytest.raises(ImportError, match=r"a_deferred_package: .*no_such_attribute"):
            hasattr(a_deferred_package, "value")


def test_a_package_runs_once_for_all_threads(package):
    (package / "__init__.py").write_text("import sys, time\nsys.ran.append('package')\ntime.sleep(0.2)\nvalue = 2\n")
    import a_deferred_package

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: a_deferred_package.value, range(4))) == [2] * 4
    assert sys.ran == ["package"]


def test_imports_are_deferred_once(package):
    startup.defer_imports()
    assert sum(isinstance(finder, startup._Deferring) for finder in sys.meta_path) == 1


def test_a_command_imports_what_it_needs():
    program = [sys.executable, "-m", "tests.programs.starts_a_command"]
    found = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
    described = found.index("[]")
    assert any(line.startswith("parameters") for line in found[:described])
    assert found[described + 1 :] == ["['flax', 'jax', 'seqio.dataset_providers']", "0.0.20 Evaluator"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose mallopt and malloc_trim it is about")
def test_freed_memory_is_kept_until_it_is_returned():
    program = """
import os
from switch_tf import compat

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

compat.keep_freed_memory()
before = resident()
numbers = bytearray(b"1") * 2**26
rest = bytearray(b"1") * 2**20
del numbers
print(resident() - before)
compat.return_freed_memory()
print(resident() - before)
"""
    kept, returned = map(int, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert kept >= 64 and returned < 16
