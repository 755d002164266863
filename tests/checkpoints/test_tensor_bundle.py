"""Tensors on disk are found again whole or in any blocks, however many processes wrote them in whatever blocks."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.tensor_bundle import Shard, slice_spec
from switch_tf.partitioning.axes import ShardIndex

TABLE = np.arange(24, dtype=np.float32).reshape(4, 6)
CUTS = {
    "whole": [[ShardIndex((0, 0), (4, 6))], []],
    "rows": [[ShardIndex((0, 0), (2, 6))], [ShardIndex((2, 0), (2, 6))]],
    "columns": [[ShardIndex((0, 0), (4, 2))], [ShardIndex((0, 2), (4, 4))]],
    "four blocks, two in each process": [
        [ShardIndex((0, 0), (2, 3)), ShardIndex((2, 0), (2, 3))],
        [ShardIndex((0, 3), (2, 3)), ShardIndex((2, 3), (2, 3))],
    ],
}


def values_of(block: ShardIndex) -> np.ndarray:
    return TABLE[tuple(slice(start, start + size) for start, size in zip(block.start, block.shape))]


def write(prefix: str, cut: str) -> None:
    for process, blocks in enumerate(CUTS[cut]):
        shards = [Shard("a/table", slice_spec(block, TABLE.shape), values_of(block)) for block in blocks]
        if process == 0:
            shards.append(Shard("step", "", np.int64(7)))
        tensor_bundle.write_shards(prefix, process, shards)
        assert not shards
        assert tensor_bundle.processes_written(prefix) == set(range(process + 1))
    tensor_bundle.merge_shards(prefix, 2)


def test_places():
    assert slice_spec(ShardIndex((0, 3), (2, 3)), (4, 6)) == "4 6 0,2:3,3"
    assert slice_spec(ShardIndex((0, 0), (4, 6)), (4, 6)) == slice_spec(ShardIndex((), ()), ()) == ""
    assert slice_spec(ShardIndex((2,), (1,)), tf.TensorShape([4])) == "4 2,1"


@pytest.mark.parametrize("written", CUTS)
def test_any_block_of_what_was_written_in_any_blocks(tmp_path, written):
    prefix = str(tmp_path / "state")
    write(prefix, written)
    for blocks in CUTS.values():
        for block in sum(blocks, [ShardIndex((1, 1), (2, 4))]):
            read = tensor_bundle.read(prefix, "a/table", tf.float32, slice_spec(block, TABLE.shape))
            np.testing.assert_array_equal(read, values_of(block))


@pytest.mark.parametrize("written", CUTS)
def test_tensorflow_reads_whole_tensors_and_nothing_else_is_left(tmp_path, written):
    write(str(tmp_path / "state"), written)
    reader = tf.train.load_checkpoint(str(tmp_path / "state"))
    assert reader.get_variable_to_shape_map() == {"a/table": [4, 6], "step": []}
    np.testing.assert_array_equal(reader.get_tensor("a/table"), TABLE)
    assert reader.get_tensor("step") == 7
    assert {path.name.split(".")[1].split("-")[0] for path in tmp_path.iterdir()} == {"index", "data"}


@pytest.mark.parametrize("name", ["lr[0.1]", "what?", "a*b", "back\\slash", "[", "sp ace", "文字"])
def test_names_are_no_patterns(tmp_path, monkeypatch, name):
    for folder in ("lr0", "whatx", "axb", "backslash"):  # What the names match as patterns.
        (tmp_path / folder).mkdir()
    prefix = str(tmp_path / name / "state")
    write(prefix, "rows")
    np.testing.assert_array_equal(tensor_bundle.read(prefix, "a/table", tf.float32), TABLE)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(tensor_bundle.read(f"{name}/state", "a/table", tf.float32), TABLE)
    # Another folder of the same relative name.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(tf.errors.OpError):
        tensor_bundle.read(f"{name}/state", "a/table", tf.float32)


def test_damage_and_what_is_not_there_are_errors(tmp_path):
    prefix = str(tmp_path / "state")
    write(prefix, "rows")
    with pytest.raises(tf.errors.NotFoundError):
        tensor_bundle.read(prefix, "b", tf.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match="shape"):
        tensor_bundle.read(prefix, "a/table", tf.float32, "5 6 0,2:0,6")
    data = tmp_path / "state.data-00001-of-00002"
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError):
        tensor_bundle.read(prefix, "a/table", tf.float32)
