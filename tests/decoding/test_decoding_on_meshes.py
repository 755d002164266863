"""Every decoder finds on a mesh what it finds on one device."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.programs import mesh_decoding

ROOT = pathlib.Path(__file__).parents[2]


def decoded(output: pathlib.Path, **settings: str) -> dict[str, np.ndarray]:
    command = [sys.executable, "-m", "tests.programs.mesh_decoding", str(output), json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(output))


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    output = tmp_path_factory.mktemp("single") / "found.npz"
    mesh_decoding.main(str(output), {"engine": "single"})
    return dict(np.load(output))


@pytest.mark.parametrize(
    ("engine", "mesh"),
    [
        ("dtensor", "data:2,model:2"),
        pytest.param("dtensor", "data:4,model:2", marks=pytest.mark.slow),
        pytest.param("dtensor", "data:8", marks=pytest.mark.slow),
        pytest.param("tpu", "data:4", marks=pytest.mark.slow),
    ],
)
def test_a_mesh_finds_what_one_device_finds(tmp_path, on_one_device, engine, mesh):
    found = decoded(tmp_path / "found.npz", engine=engine, mesh=mesh)
    assert found.keys() == on_one_device.keys()
    for name, expected in on_one_device.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, err_msg=name)
    assert np.unique(on_one_device["sample/tokens"]).size > 20
