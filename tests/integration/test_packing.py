"""PACK = True from the command line: on a mesh, and in a model directory that was not made with it."""

import pytest

from tests.support import launch

PACKED = (
    "PACK=True",
    'MIXTURE_OR_TASK="tiny_pairs"',
    "NUM_EXPERTS=8",
    "GROUP_SIZE=None",
    "WARMUP_STEPS=1000000",
    "TRAIN_STEPS=3",
    "EVAL_PERIOD=3",
    "CHECKPOINT_PERIOD=3",
)
MESH = (
    'ENGINE="dtensor"',
    'MESH_SHAPE="data:4,model:2"',
    'LAYOUT_RULES="batch:data,experts:data,heads:model,mlp:model,expert_mlp:model,vocab:model"',
    "NUM_LOGICAL_DEVICES=8",
)


@pytest.mark.slow
def test_a_mesh_trains_on_packed_data_as_one_device_does(tmp_path):
    losses = {}
    for name, layout in (("single", ()), ("mesh", MESH)):
        finished = launch.run(*launch.arguments(tmp_path / name, *PACKED, *layout))
        assert finished.returncode == 0, finished.stderr
        losses[name] = [float(row["loss"]) for row in launch.losses(tmp_path / name).values()]
    assert losses["mesh"] == pytest.approx(losses["single"], rel=1e-4)
    again = launch.run(*launch.arguments(tmp_path / "single", *PACKED, "PACK=False", "TRAIN_STEPS=6"))
    assert again.returncode == 2
    assert "holds a run with PACK = True, not None: set it back" in again.stderr
