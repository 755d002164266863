"""What the README tells a reader to run, runs."""

import json
import re
import shlex

import numpy as np
import pytest

from tests.support import commands, launch
from tests.support.shell_blocks import blocks_of, commands_of


def test_the_model_of_the_example():
    (example,) = blocks_of("README.md", "python")
    features = {"inputs": np.ones([2, 5], np.int32), "shifted_targets": np.zeros([2, 3], np.int32)}
    exec(example, features)
    assert features["logits"].shape == (2, 3, 32128)


def test_describe_counts_the_parameters_of_switch_base(capsys):
    (command,) = [line for line in commands_of("README.md") if "describe" in line]
    out = commands.call(capsys, *shlex.split(command)[1:], "--json")
    # As the paper's Table 9 says: 7 billion.
    assert json.loads(out)["parameters"] == 7_415_217_408


@pytest.mark.slow
def test_every_command_of_the_readme(tmp_path):
    """One after the other, as they stand, but for the folder."""
    lines = commands_of("README.md")
    assert len(lines) == 7
    for line in lines:
        in_folder = re.sub(r"(?<![\w/])runs\b", str(tmp_path), line)
        done = launch.run(*shlex.split(in_folder)[1:])
        assert done.returncode == 0, f"{line}: {done.stderr}"
