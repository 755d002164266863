"""A training loop without a model: the run's weights are the list of the batches that it was trained on."""

import types
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from switch_tf.checkpoints.folder import CheckpointFolder
from switch_tf.checkpoints.manifest import Manifest
from switch_tf.models.config import ModelConfig
from switch_tf.partitioning.engine import SingleEngine
from switch_tf.partitioning.layout import Layout
from switch_tf.runs.hooks import Hook
from switch_tf.runs.loop import TrainingLoop, run_through_spikes
from switch_tf.runs.resuming import restore_newest
from switch_tf.training.step import StepMetrics


class FakeBatches:
    """Batch n, from 1 on, has n everywhere."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> dict[str, np.ndarray]:
        self.position += 1
        shape = [2, 5]
        return {name: np.full(shape, self.position) for name in ("encoder_input_tokens", "decoder_target_tokens")}

    def pass_over(self, count: int) -> None:
        self.position += count


class FakeRun:
    """What the loop and its hooks use of a `Run`; `saved` has the contents of the checkpoints."""

    def __init__(self, model_dir, config: ModelConfig, step: int = 0, saved: dict | None = None):
        self.engine = SingleEngine(Layout({}, {}))
        self.experiment = types.SimpleNamespace(model_dir=str(model_dir), model=config, batch_size=2)
        self.checkpoints = CheckpointFolder(str(model_dir / "checkpoints"))
        self.teacher = None
        self.writer = types.SimpleNamespace(**dict.fromkeys(["check", "wait", "finish", "close"], lambda: None))
        self.step = tf.Variable(step)
        self.weights: list[int] = []
        self.saved = {} if saved is None else saved

    def save(self, batches: FakeBatches, score) -> None:
        step = int(self.step.numpy())
        self.saved[step] = [*self.weights], batches.position
        self.checkpoints.prepare(step)
        self.checkpoints.complete(step, Manifest(step, settings={"SEED": 0}))

    def restore(self, step: int, batches: FakeBatches) -> None:
        self.step.assign(step)
        weights, batches.position = self.saved[step]
        self.weights = [*weights]


def metrics_of(loss: float, skipped: bool = False) -> StepMetrics:
    """The metrics of a step of a dense model."""
    values = dict.fromkeys(StepMetrics._fields, tf.constant(1.0))
    values |= {"loss": tf.constant(loss), "skipped": tf.constant(float(skipped))}
    return StepMetrics(**values | {"teacher": {}, "routing": {}, "updates": {}})


def make_loop(
    model_dir, config: ModelConfig, hooks: Sequence[Hook], steps: int = 5, start: int = 0, saved: dict | None = None
) -> TrainingLoop:
    """Makes a loop that goes on from the newest checkpoint, where `saved` has it."""
    run, batches = FakeRun(model_dir, config, start, saved), FakeBatches()
    if saved:
        restore_newest(run, batches)
    loop = TrainingLoop(run, batches, steps, hooks)
    for hook in hooks:
        hook.setup(loop)
    return loop


def run_to_the_end(loop: TrainingLoop, metrics_of_batch: Callable[[int], StepMetrics]) -> TrainingLoop:
    """Runs the loop; an update adds its batch to the weights and has the batch's metrics."""

    def update(features) -> StepMetrics:
        batch = int(features["encoder_input_tokens"][0, 0])
        loop.run.weights.append(batch)
        loop.run.step.assign_add(1)
        return metrics_of_batch(batch)

    return run_through_spikes(loop, update)
