"""What the tests of the command line share."""

import pathlib

import pytest

from tests.support import commands, launch


@pytest.fixture(scope="module", autouse=True)
def _at_the_root(at_the_root):
    """All of them start from there."""


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> pathlib.Path:
    """The model directory of the tiny run after its 12 steps; copy it to write into it."""
    model_dir = tmp_path_factory.mktemp("tiny_run") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(launch.ROOT)
        commands.run(*launch.arguments(model_dir))
    return model_dir
