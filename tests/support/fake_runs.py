"""Model directories with made-up numbers, for the report: nothing is trained."""

import csv
import math
import pathlib

import numpy as np

from switch_tf.runs import loop  # noqa: F401  # Registers what config.gin binds.

_CONFIG = """\
import tests.support.tiny_task

MODEL_DIR = 'elsewhere'
SEED = {seed}
Experiment.model = @ModelConfig()
Experiment.model_dir = %MODEL_DIR
Experiment.mixture_or_task = 'tiny_span_corruption'
Experiment.task_feature_lengths = {{'inputs': 32, 'targets': 10}}
Experiment.batch_size = 64
Experiment.seed = %SEED
ModelConfig.vocab_size = 512
ModelConfig.d_model = 32
ModelConfig.d_ff = 64
ModelConfig.d_kv = 8
ModelConfig.num_heads = 2
ModelConfig.num_encoder_layers = {layers}
ModelConfig.num_decoder_layers = {layers}
ModelConfig.num_experts = {experts}
ModelConfig.sparse_every = 1
train.steps = {steps}
"""


def fake_run(
    folder: pathlib.Path,
    *,
    experts: int = 8,
    layers: int = 1,
    steps: int = 800,
    seed: int = 0,
    lead: float = 0.0,
    log_period: int = 10,
    eval_period: int = 200,
    collapse_at: int | None = None,
) -> pathlib.Path:
    """Writes the files of a run, whose decoder collapses onto its first expert at a step (None: never)."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    text = _CONFIG.format(seed=seed, layers=layers, experts=experts, steps=steps)
    (folder / "config.gin").write_text(text)
    (folder / "versions.txt").write_text("python==3.11.7\ntensorflow==2.20.0\n")
    names = [f"{stack}/layer_{index}" for stack in ("encoder", "decoder") for index in range(layers)] if experts else []
    measures = {
        "fraction_dropped": 0.01,
        "router_entropy": 0.7 * math.log(max(experts, 2)),
        "router_confidence": 0.5,
        "output_size": 0.6,
        "residual_size": 2.0,
        "norm_scale": 0.9,
        "router_gradient": 0.1,
        "expert_gradient": 0.2,
        "router_update": 0.01,
        "expert_update": 0.01,
    }

    def quality(step: int) -> float:
        return -6.0 * math.exp(-step / 300) - 2.0 + lead * step / steps

    columns = [f"{layer}/{measure}" for layer in names for measure in measures]
    with open(folder / "metrics.csv", "w") as file:
        file.write(",".join(["step", "neg_log_perplexity", *columns, "tokens_per_second"]) + "\n")
        values = np.tile([*measures.values()], len(names))
        for step in range(1, steps + 1):
            noisy = values * (1 + 0.05 * generator.standard_normal(len(values)))
            numbers = [quality(step) + 0.05 * generator.standard_normal(), *noisy, 20000.0]
            file.write(f"{step}," + ",".join(map(repr, map(float, numbers))) + "\n")
    with open(folder / "eval.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "neg_log_perplexity", "accuracy"])
        writer.writerows([step, quality(step), 0.3] for step in range(eval_period, steps + 1, eval_period))
    if names:
        with open(folder / "experts.csv", "w") as file:
            file.write(",".join(["step", "layer", *(f"load_{expert}" for expert in range(experts))]) + "\n")
            for step in range(log_period, steps + 1, log_period):
                for layer in names:
                    loads = generator.dirichlet([50.0] * experts)
                    if collapse_at is not None and step >= collapse_at and layer.startswith("decoder"):
                        loads = 0.2 * loads
                        loads[0] += 0.8
                    file.write(f"{step},{layer}," + ",".join(map(repr, map(float, loads))) + "\n")
    return folder
