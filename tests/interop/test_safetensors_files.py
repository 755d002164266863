"""Safetensors files against the package `safetensors`, which is not what reads or writes them here."""

import json
import pathlib

import ml_dtypes  # noqa: F401 (so that numpy knows bfloat16)
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from switch_tf.errors import SettingError
from switch_tf.interop.lazy_tensors import in_memory
from switch_tf.interop.safetensors_files import read_safetensors, write_safetensors
from tests.support.foreign_files import BFLOAT16

ARRAYS = {
    "float32": np.arange(12, dtype=np.float32).reshape(3, 4),
    "float16": np.arange(3, dtype=np.float16),
    "integers": np.arange(3, dtype=np.int64),
    "scalar": np.array(2.0, np.float32),
}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.safetensors")


def test_their_files_are_read(path):
    safetensors.numpy.save_file(ARRAYS, path, metadata={"format": "pt", "lm_head.weight": "shared.weight"})
    tensors, metadata = read_safetensors(path)
    assert metadata == {"format": "pt", "lm_head.weight": "shared.weight"}
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensors[name].read(), array)


def test_they_read_our_files(path):
    arrays = {**ARRAYS, "bfloat16": np.arange(6).reshape(2, 3).astype(BFLOAT16), "transposed": ARRAYS["float32"].T}
    sizes = []
    write_safetensors(path, {name: in_memory(array) for name, array in arrays.items()}, sizes.append)
    assert sum(sizes) == sum(array.nbytes for array in arrays.values())
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array, err_msg=name)
    tensors, _ = read_safetensors(path)
    np.testing.assert_array_equal(tensors["bfloat16"].read(), arrays["bfloat16"])


def test_damage_is_told(path):
    safetensors.numpy.save_file(ARRAYS, path)
    content = pathlib.Path(path).read_bytes()
    for damaged, message in (
        (content[:-1], "is truncated: it has"),
        (content[:20], "is damaged: it is no safetensors file"),
        (content[:4], "is truncated"),
        (b"\xff" * 8 + content[8:], "is damaged: it is no safetensors file"),
        (content.replace(b"F32", b"F99"), "is damaged"),
        (content + b"more", "is damaged: it has"),
    ):
        with open(path, "wb") as file:
            file.write(damaged)
        with pytest.raises(SettingError, match=message):
            read_safetensors(path)
    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(SettingError, match=r"a tensor of shape \[3\] has 8 bytes"):
        read_safetensors(path)
