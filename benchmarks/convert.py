"""`switch-tf convert` on a made-up Switch Transformer of 8 GB: time beside a plain copy with a cast, and peak memory.

    python -m benchmarks.convert --folder=runs/convert --json=runs/convert.json

Needs torch, which writes the checkpoint (bfloat16, `pytorch_model-*.bin`), and 50 GB of disk.
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

_CHUNK = 1 << 26


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


def plain_copy(source: pathlib.Path, target: pathlib.Path) -> float:
    """Copies all shards with a cast to float32, in chunks; returns the seconds."""
    target.mkdir()
    start = time.perf_counter()
    for path in sorted(source.glob("*.bin")):
        size = path.stat().st_size // 2
        with open(target / path.name, "wb") as file:
            for offset in range(0, size, _CHUNK):
                values = np.fromfile(path, ml_dtypes.bfloat16, min(_CHUNK, size - offset), offset=2 * offset)
                file.write(values.astype(np.float32).data)
    return time.perf_counter() - start


def convert(*arguments: str) -> tuple[float, float]:
    """Runs the command; returns (seconds, peak memory in GB of the largest command so far)."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "switch_tf.cli.main", "convert", *arguments], check=True)
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def size_of(folder: pathlib.Path) -> float:
    """Returns the GB in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def main() -> None:
    """Runs the benchmark and prints, or writes, its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/convert", help="for the checkpoints; removed at the end")
    parser.add_argument("--num_experts", type=int, default=68)
    parser.add_argument("--json", help="where the figures go")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    source, copy, model_dir, back = (folder / name for name in ("hub", "copy", "model_dir", "back"))
    make(source, options.num_experts)
    figures = {"source_gb": size_of(source), "plain_copy_seconds": plain_copy(source, copy)}
    shutil.rmtree(copy)
    figures["in_seconds"], figures["in_peak_gb"] = convert(str(source), str(model_dir))
    figures["model_dir_gb"] = size_of(model_dir)
    flags = ("--to=huggingface", "--dtype=bfloat16")
    figures["out_seconds"], figures["peak_gb"] = convert(*flags, str(model_dir), str(back))
    figures["out_gb"] = size_of(back)
    figures["in_over_copy"] = figures["in_seconds"] / figures["plain_copy_seconds"]
    shutil.rmtree(folder)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        pathlib.Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
