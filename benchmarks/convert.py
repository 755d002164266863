"""`switch-tf convert` on a made-up Switch Transformer of 8 GB: time beside a plain copy with a cast, and peak memory.

    python -m benchmarks.convert --folder=runs/convert --json=runs/convert.json

Copy and command alternate; the figures are medians of the rounds. Needs torch, which writes the checkpoint (bfloat16,
`pytorch_model-*.bin`), and 45 GB of disk.
"""

import argparse
import collections
import json
import multiprocessing
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable

import ml_dtypes
import numpy as np

_CHUNK = 1 << 26
_FLOAT32, _BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def shapes(num_experts: int, num_layers: int = 12, d_model: int = 768, d_ff: int = 3072) -> dict[str, tuple[int, ...]]:
    """Lists the tensors of a Switch-Base of so many experts, as they are named on the hub."""
    found = {"shared.weight": (32128, d_model)}
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        found[f"{stack}.final_layer_norm.weight"] = (d_model,)
        found[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 12)
        for block in range(num_layers):
            prefix = f"{stack}.block.{block}.layer"
            for index, attention in enumerate(attentions):
                found[f"{prefix}.{index}.layer_norm.weight"] = (d_model,)
                found |= {f"{prefix}.{index}.{attention}.{name}.weight": (d_model, d_model) for name in "qkvo"}
            prefix = f"{prefix}.{len(attentions)}"
            found[f"{prefix}.layer_norm.weight"] = (d_model,)
            layers = [f"{prefix}.mlp"]
            if block % 2:
                found[f"{prefix}.mlp.router.classifier.weight"] = (num_experts, d_model)
                layers = [f"{prefix}.mlp.experts.expert_{index}" for index in range(num_experts)]
            for layer in layers:
                found |= {f"{layer}.wi.weight": (d_ff, d_model), f"{layer}.wo.weight": (d_model, d_ff)}
    return found


def make(folder: pathlib.Path, num_experts: int, shard_bytes: int = 1_000_000_000) -> None:
    """Writes the checkpoint with torch, shard by shard."""
    import torch

    folder.mkdir(parents=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes(num_experts).items():
        if size > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * int(np.prod(shape))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"pytorch_model-{number:05d}-of-{len(shards):05d}.bin"
        torch.save({name: torch.randn(shape).bfloat16() for name, shape in shard.items()}, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "switch_transformers", "num_experts": num_experts}))


def cool(files: Iterable[pathlib.Path]) -> None:
    """Writes what is to be written and drops files from the page cache, so that each measurement starts alike."""
    os.sync()
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain_copy(files: Iterable[pathlib.Path], target: pathlib.Path, dtype: np.dtype, cast_to: np.dtype) -> float:
    """Copies files with a cast of all their bytes, in chunks, and removes the copies; returns the seconds."""
    target.mkdir()
    start = time.perf_counter()
    for path in files:
        size = path.stat().st_size // dtype.itemsize
        with open(target / path.name, "wb") as file:
            for offset in range(0, size, _CHUNK):
                count = min(_CHUNK, size - offset)
                values = np.fromfile(path, dtype, count, offset=offset * dtype.itemsize)
                file.write(values.astype(cast_to).view(np.uint8).data)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def convert(*arguments: str) -> tuple[float, float]:
    """Runs the command; returns (seconds, peak memory in GB)."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "switch_tf.cli.main", "convert", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"switch-tf convert {' '.join(arguments)} failed.")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def size_of(folder: pathlib.Path) -> float:
    """Returns the GB in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def main() -> None:
    """Runs the benchmark and prints, or writes, its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/convert", help="for the checkpoints; removed at the end")
    parser.add_argument("--num_experts", type=int, default=68)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="where the figures go")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    source, copy, model_dir, back = (folder / name for name in ("hub", "copy", "model_dir", "back"))
    # In a process of its own: what this one has held counts as its children's peak memory.
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(source, options.num_experts))
    maker.start()
    maker.join()
    rounds: dict[str, list[float]] = collections.defaultdict(list)
    for _ in range(options.rounds):
        for made in (model_dir, back):
            shutil.rmtree(made, ignore_errors=True)
        shards = sorted(source.glob("*.bin"))
        cool(shards)
        rounds["in_copy_seconds"].append(plain_copy(shards, copy, _BFLOAT16, _FLOAT32))
        cool(shards)
        seconds, peak = convert(str(source), str(model_dir))
        rounds["in_seconds"].append(seconds)
        rounds["in_peak_gb"].append(peak)
        tensors = sorted(model_dir.glob("checkpoints/step_*/*.data-*"))
        cool(tensors)
        rounds["out_copy_seconds"].append(plain_copy(tensors, copy, _FLOAT32, _BFLOAT16))
        cool(tensors)
        seconds, peak = convert("--to=huggingface", "--dtype=bfloat16", str(model_dir), str(back))
        rounds["out_seconds"].append(seconds)
        rounds["out_peak_gb"].append(peak)
    figures = {name: statistics.median(values) for name, values in rounds.items()}
    figures |= {f"{folder.name}_gb": size_of(folder) for folder in (source, model_dir, back)}
    figures |= {f"{way}_over_copy": figures[f"{way}_seconds"] / figures[f"{way}_copy_seconds"] for way in ("in", "out")}
    shutil.rmtree(folder)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        pathlib.Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
