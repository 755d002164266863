"""Files of other systems, written here byte by byte or with TensorFlow's own operations, not by the code under test."""

import pathlib
import struct
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

FOREIGN = pathlib.Path(__file__).parents[3] / "shared" / "foreign"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_STORAGES = {np.dtype(np.float32): "FloatStorage", BFLOAT16: "BFloat16Storage", np.dtype(np.float16): "HalfStorage"}


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values) -> bytes:
    return b"(" + b"".join(_number(value) for value in values) + b"t"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def torch_pickle(entries: Mapping[str, tuple[str, np.ndarray, np.ndarray]]) -> bytes:
    """The pickle of a state dict: {name: (key of a storage, the storage, a view into it)}."""
    text = b"\x80\x02" + _global("collections", "OrderedDict") + b")R("
    for name, (key, storage, view) in entries.items():
        offset = (view.__array_interface__["data"][0] - storage.__array_interface__["data"][0]) // view.itemsize
        kind = _global("torch", _STORAGES[storage.dtype])
        persistent = b"(" + _text("storage") + kind + _text(key) + _text("cpu") + _number(storage.size) + b"tQ"
        strides = [stride // view.itemsize for stride in view.strides]
        hooks = _global("collections", "OrderedDict") + b")R"
        arguments = persistent + _number(offset) + _tuple(view.shape) + _tuple(strides) + b"\x89" + hooks
        text += _text(name) + _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"
    return text + b"u."


def write_torch(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes what `torch.save` does of a dict; views of one array share its storage."""
    entries, storages = {}, {}
    for name, array in tensors.items():
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        storage = owner.reshape(-1)
        key, _ = storages.setdefault(owner.__array_interface__["data"][0], (str(len(storages)), storage))
        entries[name] = (key, storage, array)
    write_archive(path, torch_pickle(entries), dict(storages.values()))


def write_archive(path: pathlib.Path, pickle: bytes, storages: Mapping[str, np.ndarray] | None = None) -> None:
    """Writes torch's zip archive around a pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for key, storage in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", storage.tobytes())
        archive.writestr("archive/version", "3\n")


def switch_tensors(
    *,
    num_layers: int = 2,
    num_experts: int = 4,
    d_model: int = 16,
    d_ff: int = 24,
    heads: int = 16,
    vocab_size: int = 96,
    sparse: range = range(2),
    head: str | None = "decoder.lm_head.weight",
    dtype: np.dtype = BFLOAT16,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The tensors of a Switch Transformer as the hub has them; like Switch-C by default, with all layers sparse."""
    random = np.random.default_rng(seed)
    shapes = {"shared.weight": (vocab_size, d_model)} | ({head: (vocab_size, d_model)} if head else {})
    for stack in ("encoder", "decoder"):
        shapes[f"{stack}.final_layer_norm.weight"] = (d_model,)
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 2)
        feed_forward = 2 if stack == "decoder" else 1
        for layer in range(num_layers):
            prefix = f"{stack}.block.{layer}.layer"
            attentions = [(0, "SelfAttention")] + ([(1, "EncDecAttention")] if stack == "decoder" else [])
            for index, attention in attentions:
                shapes[f"{prefix}.{index}.layer_norm.weight"] = (d_model,)
                shapes |= {f"{prefix}.{index}.{attention}.{name}.weight": (heads, d_model) for name in "qkv"}
                shapes[f"{prefix}.{index}.{attention}.o.weight"] = (d_model, heads)
            shapes[f"{prefix}.{feed_forward}.layer_norm.weight"] = (d_model,)
            prefix = f"{prefix}.{feed_forward}.mlp"
            experts = [prefix]
            if layer in sparse:
                shapes[f"{prefix}.router.classifier.weight"] = (num_experts, d_model)
                experts = [f"{prefix}.experts.expert_{index}" for index in range(num_experts)]
            for expert in experts:
                shapes |= {f"{expert}.wi.weight": (d_ff, d_model), f"{expert}.wo.weight": (d_model, d_ff)}
    return {name: random.standard_normal(shape, np.float32).astype(dtype) for name, shape in shapes.items()}
