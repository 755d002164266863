"""Files of torch.save, read without torch: views, checksums, and pickles that ask for more than weights."""

import os
import zipfile

import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.interop.torch_files import read_torch
from tests.support.foreign_files import BFLOAT16, write_archive, write_torch


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


def read(path):
    return {name: tensor.read() for name, tensor in read_torch(str(path)).items()}


def test_views_share_a_storage(path):
    table = np.arange(2 * 6 * 4, dtype=np.float32).reshape(2, 6, 4)
    tensors = {
        "expert_0": table[0].T,
        "expert_1": table[1].T,
        "column": table[1, :, 2],
        "bfloat16": np.arange(5, dtype=np.float32).astype(BFLOAT16),
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    write_torch(path, tensors)
    found = read(path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    lazy = read_torch(str(path))["expert_0"]
    assert (lazy.shape, lazy.nbytes) == ((4, 6), 96)


def test_torch_itself_wrote_it(path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    table = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {"whole": table.bfloat16(), "view": table[1].T, "half": table[0].half()}
    torch.save(tensors, path)
    found = read(path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), tensor.float().numpy())


@pytest.mark.parametrize(
    "name", ["os system", "builtins eval", "torch load", "torch._utils _rebuild_tensor", "numpy.core.multiarray scalar"]
)
def test_a_pickle_that_asks_for_anything_else_runs_nothing(path, tmp_path, name):
    module, attribute = name.split()
    witness = tmp_path / "witness"
    command = f"touch {witness}".encode()
    call = f"c{module}\n{attribute}\n".encode() + b"(X" + len(command).to_bytes(4, "little") + command + b"tR."
    write_archive(path, b"\x80\x02" + call)
    with pytest.raises(SettingError, match=rf"was not read: its pickle asks for {module}\.{attribute}"):
        read_torch(str(path))
    assert not witness.exists()


def test_a_flipped_bit_is_found(path):
    table = np.zeros((2, 1000), np.float32)
    write_torch(path, {"whole": np.ones(1000, np.float32), "row": table[1]})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        places = {info.filename: info.header_offset for info in archive.infolist()}
    for name, member in (("whole", "archive/data/0"), ("row", "archive/data/1")):
        damaged = bytearray(content)
        damaged[places[member] + 200] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(SettingError, match=rf"is damaged: the checksum of {member} is not the one recorded"):
            read_torch(str(path))[name].read()


@pytest.mark.parametrize("keep", [4, 100, -1000, -10])
def test_truncated_files_are_refused(path, keep):
    write_torch(path, {"weight": np.ones(1000, np.float32)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SettingError, match="truncated or damaged"):
        read_torch(str(path))["weight"].read()


def test_files_of_old_versions_are_explained(path):
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(SettingError, match=r"torch before 1\.6"):
        read_torch(str(path))
    with pytest.raises(SettingError, match="cannot be read: "):
        read_torch(os.path.join(str(path), "absent"))
