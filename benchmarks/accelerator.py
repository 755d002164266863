"""The Switch layer and the training step on an accelerator that JAX knows, beside Hugging Face's step in PyTorch.

    python -m benchmarks.accelerator export FOLDER
    python -m benchmarks.accelerator time FOLDER --json=FILE

`export` lowers the programs to StableHLO with TensorFlow, on any machine. `time` needs JAX, and for Hugging Face's step
PyTorch and transformers, on the machine with the accelerator. Activations are in bfloat16, weights in float32.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.measuring import spread

# The layer: groups of tokens, and the widths of Switch-Large.
GROUPS, GROUP_SIZE, LAYER = 32, 1024, {"d_model": 1024, "d_ff": 4096}
LAYER_EXPERTS = (8, 32, 64, 128)
# The step: the widths of Switch-Base, 6 + 6 layers.
BATCH, INPUTS, TARGETS = 32, 512, 114
MODEL = {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12}
DEPTH = 6
STEP_EXPERTS = (8, 32)
_CALLS = 10


def export(folder: pathlib.Path) -> None:
    """Writes each program and the shapes of its arguments."""
    from switch_tf.export.stablehlo import write_program

    for name, program in _programs():
        signature = write_program(str(folder), name, program)
        (folder / f"{name}.json").write_text(json.dumps(signature["arguments"]))
        print(name, flush=True)


def _programs() -> Iterator[tuple[str, Any]]:
    from benchmarks.feed_forward import make_layer
    from switch_tf.export.pure_programs import training_step
    from switch_tf.layers.dispatch import DISPATCHERS
    from switch_tf.models.config import ModelConfig
    from switch_tf.planning.weight_specs import without_allocation
    from switch_tf.training.adafactor import Adafactor
    from switch_tf.training.losses import Objective
    from tpu.precompile.plan import built

    layers = [("dense", 0), *((name, num_experts) for num_experts in LAYER_EXPERTS for name in DISPATCHERS)]
    for dispatcher, num_experts in layers:
        with without_allocation():
            layer = make_layer(**LAYER, num_experts=num_experts, dispatcher=dispatcher, dtype="mixed_bfloat16")
        yield f"layer-{dispatcher}-{num_experts}", _layer_program(layer)
    for num_experts in LAYER_EXPERTS:
        yield f"layer-bound-{num_experts}", _bound(num_experts)
    features = {"encoder_input_tokens": (BATCH, INPUTS)} | dict.fromkeys(
        ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"), (BATCH, TARGETS)
    )
    for num_experts in (0, *STEP_EXPERTS):
        config = ModelConfig(
            **MODEL,
            num_encoder_layers=DEPTH,
            num_decoder_layers=DEPTH,
            num_experts=num_experts,
            dropout_rate=0.0,
            activation_dtype="bfloat16",
        )
        yield f"step-ours-{num_experts}", training_step(built(config), Adafactor(), Objective(), features)


def _layer_program(layer: Any) -> Any:
    """Returns forward and backward of a layer: (x, seed, weights) -> gradients of the input and of all weights."""
    import keras
    import tensorflow as tf

    from switch_tf.export.pure_programs import PureProgram
    from switch_tf.layers.context import ForwardContext

    variables = {variable.path: variable for variable in layer.trainable_variables}

    def gradients(x: tf.Tensor, seed: tf.Tensor, weights: dict[str, tf.Tensor]) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            tape.watch([x, weights])
            with keras.StatelessScope([(variables[path], weight) for path, weight in weights.items()]):
                y, routing = layer(x, context=ForwardContext(training=True, seed=seed))
            loss = tf.reduce_sum(tf.square(tf.cast(y, tf.float32)))
            if routing is not None:
                loss += routing.balance_loss
        of_x, of_weights = tape.gradient(loss, [x, weights])
        return {"x": of_x, "weights": of_weights}

    shapes = {path: tf.TensorSpec(variable.shape) for path, variable in variables.items()}
    x = tf.TensorSpec([GROUPS, GROUP_SIZE, LAYER["d_model"]], tf.bfloat16)
    return PureProgram(gradients, {"x": x, "seed": tf.TensorSpec([], tf.int32), "weights": shapes})


def _bound(num_experts: int) -> Any:
    """Returns the matmuls of the experts and nothing else, with the tokens spread evenly: `make_bound` in bfloat16."""
    import tensorflow as tf

    from switch_tf.export.pure_programs import PureProgram

    def gradients(x: tf.Tensor, weights: dict[str, tf.Tensor]) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            tape.watch([x, weights])
            hidden = tf.matmul(tf.reshape(x, [num_experts, -1, LAYER["d_model"]]), tf.cast(weights["wi"], x.dtype))
            y = tf.matmul(tf.nn.relu(hidden), tf.cast(weights["wo"], x.dtype))
            loss = tf.reduce_sum(tf.square(tf.cast(y, tf.float32)))
        of_x, of_weights = tape.gradient(loss, [x, weights])
        return {"x": of_x, "weights": of_weights}

    shape = (LAYER["d_model"], LAYER["d_ff"])
    weights = {"wi": tf.TensorSpec([num_experts, *shape]), "wo": tf.TensorSpec([num_experts, *shape[::-1]])}
    x = tf.TensorSpec([GROUPS, GROUP_SIZE, LAYER["d_model"]], tf.bfloat16)
    return PureProgram(gradients, {"x": x, "weights": weights})


def timed(folder: pathlib.Path, rounds: int) -> list[dict[str, Any]]:
    """Times all layers in turn, then for each number of experts all steps in turn.

    Args:
      folder: what `export` wrote.
      rounds: how often each is timed.

    Returns:
      A row for each: medians and quartiles of the seconds, and of the ratio to the dense layer or to our step.
    """
    layers = {path.stem: _layer(folder, path.stem) for path in sorted(folder.glob("layer-*.json"))}
    rows = _in_turn(layers, "layer-dense-0", rounds)
    for path in sorted(folder.glob("step-ours-*.json")):
        num_experts = int(path.stem.split("-")[-1])
        steps = {path.stem: _step(folder, path.stem)}
        if num_experts:
            steps[f"step-huggingface-{num_experts}"] = _huggingface_step(num_experts)
        rows += _in_turn(steps, path.stem, rounds)
    return rows


def _in_turn(functions: dict[str, Callable], base: str, rounds: int) -> list[dict[str, Any]]:
    for function in functions.values():
        function()
    times = [{name: function() for name, function in functions.items()} for _ in range(rounds)]
    rows = []
    for name in functions:
        kind, system, experts = name.split("-")
        seconds, ratios = [each[name] for each in times], [each[name] / each[base] for each in times]
        row = {"what": kind, "system": system, "experts": int(experts)} | spread("seconds", seconds)
        rows.append(row | spread("ratio", ratios))
        print(f"{name:<24}{rows[-1]['seconds'] * 1e3:9.2f} ms{rows[-1]['ratio']:7.2f}", flush=True)
    return rows


def _layer(folder: pathlib.Path, name: str) -> Callable[[], float]:
    import jax

    call, arguments = jax.jit(_exported(folder, name)), _arguments(folder, name)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(_CALLS):
            results = call(*arguments.values())
        jax.block_until_ready(results)
        return (time.perf_counter() - start) / _CALLS

    return seconds


def _step(folder: pathlib.Path, name: str) -> Callable[[], float]:
    import jax

    step = jax.jit(_exported(folder, name), donate_argnums=(0, 1))
    state: dict[str, Any] = {}

    def seconds() -> float:
        arguments = state or _arguments(folder, name)
        start = time.perf_counter()
        for _ in range(_CALLS):
            results = step(*arguments.values())
            arguments |= {"weights": results["weights"], "slots": results["slots"], "step": arguments["step"] + 1}
        loss = float(results["metrics"]["loss"])
        state.update(arguments)
        assert np.isfinite(loss), f"{name}: the loss is {loss}."
        return (time.perf_counter() - start) / _CALLS

    return seconds


def _huggingface_step(num_experts: int) -> Callable[[], float]:
    import torch
    import transformers
    from transformers.optimization import Adafactor

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    sparse = {f"num_{name}": DEPTH for name in ("layers", "decoder_layers")}
    config = transformers.SwitchTransformersConfig(
        **MODEL,
        **sparse,
        num_experts=num_experts,
        num_sparse_encoder_layers=DEPTH // 2,
        num_sparse_decoder_layers=DEPTH // 2,
        expert_capacity=INPUTS,
        dropout_rate=0.0,
        output_router_logits=True,
        decoder_start_token_id=0,
    )
    model = transformers.SwitchTransformersForConditionalGeneration(config).cuda().train()
    optimizer = Adafactor(model.parameters(), lr=1e-3, scale_parameter=True, relative_step=False)
    features = {name: torch.from_numpy(value.astype(np.int64)).cuda() for name, value in _batch().items()}

    def seconds() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_CALLS):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(input_ids=features["encoder_input_tokens"], labels=features["decoder_target_tokens"]).loss
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / _CALLS

    return seconds


def _batch() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    targets = random.integers(2, MODEL["vocab_size"], [BATCH, TARGETS], dtype=np.int32)
    return {
        "encoder_input_tokens": random.integers(2, MODEL["vocab_size"], [BATCH, INPUTS], dtype=np.int32),
        "decoder_input_tokens": np.concatenate([np.zeros([BATCH, 1], np.int32), targets[:, :-1]], axis=1),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones([BATCH, TARGETS], np.int32),
    }


def _exported(folder: pathlib.Path, name: str) -> Callable:
    import jax

    return jax.export.deserialize(bytearray((folder / f"{name}.jax").read_bytes())).call


def _arguments(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Makes the arguments of a program: random weights, slots of 0 and the batch, on the device."""
    import jax
    import jax.numpy as jnp

    nest: dict[str, Any] = {}
    for index, entry in enumerate(json.loads((folder / f"{name}.json").read_text())):
        path, shape = entry["name"], entry["shape"]
        top, _, rest = path.partition("/")
        if path.startswith("features/"):
            value = jnp.asarray(_batch()[rest])
        elif top in ("slots", "seed", "step"):
            value = jnp.zeros(shape, entry["dtype"])
        elif len(shape) == 1:
            value = jnp.ones(shape, entry["dtype"])
        else:
            size = 1.0 if path == "x" else 0.02
            value = size * jax.random.normal(jax.random.key(index), shape, entry["dtype"])
        if top == "slots":
            weight, _, slot = rest.rpartition("/")
            nest.setdefault(top, {}).setdefault(weight, {})[slot] = value
        elif rest:
            nest.setdefault(top, {})[rest] = value
        else:
            nest[top] = value
    return nest


def main() -> None:
    """Exports or times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("export", "time"))
    parser.add_argument("folder", type=pathlib.Path, help="of the programs")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="where `time` writes its numbers")
    options = parser.parse_args()
    if options.what == "export":
        options.folder.mkdir(parents=True, exist_ok=True)
        export(options.folder)
        return
    rows = timed(options.folder, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
