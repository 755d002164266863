"""Checkpoints of ours as sources and targets: every format there and back, bit for bit, on disks and in buckets."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.checkpoints.folder import checkpoints_of
from switch_tf.checkpoints.manifest import Manifest
from switch_tf.errors import SettingError
from switch_tf.interop import own_checkpoints
from switch_tf.interop.formats import kind_of, new_folder, open_source, write_huggingface
from switch_tf.interop.lazy_tensors import BFLOAT16, in_memory
from switch_tf.interop.t5x import write_t5x
from tests.support.foreign_files import switch_tensors, write_torch
from tests.support.random_weights import DENSE, MODELS, lazy, random_weights

ROUND_TRIPS = sorted(MODELS.keys() - {"balanced"})


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
    monkeypatch.setattr(own_checkpoints, "_BYTES_AT_ONCE", 20_000)


def write(model_dir, config, weights, step=0):
    manifest = Manifest(
        step=step,
        model=dataclasses.asdict(config),
        shapes={"step": (), **{name: tensor.shape for name, tensor in weights.items()}},
    )
    own_checkpoints.write_own(str(model_dir), weights, manifest)


def assert_same(source, weights):
    assert source.weights.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(source.weights[name].read(), array.astype(np.float32), err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trips(tmp_path, name, dtype):
    config = dataclasses.replace(DENSE, **MODELS[name], expert_capacity=8, group_size=None)
    weights = random_weights(config)
    if dtype == "bfloat16":  # Numbers that bfloat16 has, so that nothing is lost.
        weights = {name: tensor.read().astype(np.float32) for name, tensor in lazy(random_weights(config)).items()}
        weights = {name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, array in weights.items()}
    write(tmp_path / "start", config, lazy(weights), step=5)
    prefix = checkpoints_of(str(tmp_path / "start")).prefix(5)
    assert len(tf.io.gfile.glob(f"{prefix}.data-*")) > 1
    start = open_source(str(tmp_path / "start"))
    assert (start.kind, start.step, start.config) == ("switch_tf", 5, config)
    assert_same(start, weights)

    targets = ["t5x"]
    if name not in ("gated_experts", "from_second", "top"):
        targets.append("huggingface")
    for target in targets:
        folder = tmp_path / target
        folder.mkdir()
        if target == "t5x":
            write_t5x(str(folder), {key: tensor.cast(np.dtype(dtype)) for key, tensor in start.weights.items()}, 5)
        else:
            write_huggingface(str(folder), config, start.weights, None, dtype=dtype)
        there = open_source(str(folder))
        assert there.kind == target
        write(tmp_path / f"back_{target}", there.config, there.weights, step=5)
        assert_same(open_source(str(tmp_path / f"back_{target}")), weights)


def test_one_checkpoint_of_several(tmp_path):
    config = dataclasses.replace(DENSE, num_experts=2)
    for step in (3, 70):
        write(tmp_path, config, lazy(random_weights(config, seed=step)), step)
    assert open_source(str(tmp_path)).step == 70
    one = str(tmp_path / "checkpoints" / "step_00000003")
    assert kind_of(one) == "switch_tf"
    assert_same(open_source(one), random_weights(config, seed=3))


def test_damage_is_told(tmp_path):
    write(tmp_path, DENSE, lazy(random_weights(DENSE)))
    source = open_source(str(tmp_path))
    for path in tmp_path.rglob("state.data-*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(SettingError, match="is damaged"):
        for tensor in source.weights.values():
            tensor.read()


def test_folders_are_whole_or_not_there(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(KeyboardInterrupt), new_folder(str(target)) as folder:
        (tmp_path / "target.unfinished" / "part").write_text(folder)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "target.unfinished").mkdir()
    (tmp_path / "target.unfinished" / "of a kill").write_text("")
    target.mkdir()
    with new_folder(str(target)) as folder:
        assert os.listdir(folder) == []
        (tmp_path / "target.unfinished" / "all").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "all"]
    with pytest.raises(SettingError, match="is there already"), new_folder(str(target)):
        pass
    assert (target / "all").exists()


def test_in_a_bucket(buckets, tmp_path):
    """Torch's files and a model directory, both read and written through TensorFlow's file system."""
    buckets.make("bucket")
    tensors = switch_tensors(head=None)
    write_torch(tmp_path / "pytorch_model.bin", tensors)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "switch_transformers"}))
    for name in ("pytorch_model.bin", "config.json"):
        tf.io.gfile.copy(str(tmp_path / name), f"gs://bucket/hub/{name}")
    source = open_source("gs://bucket/hub")
    with new_folder("gs://bucket/model") as folder:
        write(folder, source.config, source.weights)
    again = open_source("gs://bucket/model")
    with new_folder("gs://bucket/back") as folder:
        write_huggingface(folder, again.config, again.weights, None, dtype="bfloat16", shard_bytes=10_000)
    back = open_source("gs://bucket/back").weights
    for name, tensor in source.weights.items():
        np.testing.assert_array_equal(back[name].read(), tensor.read(), err_msg=name)
    with pytest.raises(SettingError, match="stopped"), new_folder("gs://bucket/part") as folder:
        write(folder, source.config, source.weights)
        raise SettingError("stopped")
    assert buckets.names("bucket", "part") == []


@pytest.mark.parametrize("shape", [(), (3,), (130, 70), (2, 3, 4)])
def test_bfloat16_is_widened_in_any_order(shape):
    array = np.asarray(np.random.default_rng(0).normal(size=shape)).astype(BFLOAT16)
    for ordered in (array, array.T):
        wide = in_memory(ordered).cast(np.dtype(np.float32)).read()
        assert wide.dtype == np.float32 and wide.flags.c_contiguous
        np.testing.assert_array_equal(wide, ordered.astype(np.float32))
