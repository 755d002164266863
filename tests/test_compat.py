"""What `compat` does to other packages is undone where it should be."""

import subprocess
import sys


def test_tensorflow_is_imported_without_what_it_can_do_without():
    program = [sys.executable, "-m", "tests.programs.imports_tensorflow"]
    found = subprocess.run(program, capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["[]", "3"]
