"""Held-out likelihood of a model, with teacher forcing."""

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from switch_tf.data.batches import Batch
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engine import Engine
from switch_tf.training.distillation import ModelTeacher
from switch_tf.training.losses import cross_entropy, token_weights
from switch_tf.training.step import EvaluationSums, Features, make_evaluation_step
from switch_tf.training.step_metrics import routing_scalars


def make_evaluator(
    model: EncoderDecoder,
    engine: Engine,
    teacher: ModelTeacher | None = None,
    teacher_weights: Sequence[tf.Variable] = (),
) -> Callable[[Iterable[Batch]], dict[str, float]]:
    """Compiles the evaluation of a model's current weights.

    Args:
      model: built by the engine.
      engine: where the model is.
      teacher: the model's, to be measured beside it; None without one.
      teacher_weights: its variables.

    Returns:
      evaluate(batches) -> numbers by name: neg_log_perplexity (nats for each real target token, higher is better),
      accuracy, target_tokens, balance_loss, those of the teacher, and for each sparse layer what its router did.
      Likelihood and accuracy are means over all real target tokens of all batches, what routers did a mean over the
      batches.
    """
    step = make_evaluation_step(model, teacher)
    variables = model.trainable_variables

    def on_device(features: Features) -> EvaluationSums:
        values = [tf.convert_to_tensor(variable) for variable in variables]
        return step(values, features, [tf.convert_to_tensor(variable) for variable in teacher_weights])

    compiled = engine.compile(on_device)

    def evaluate(batches: Iterable[Batch]) -> dict[str, float]:
        total: EvaluationSums | None = None
        for batch in batches:
            sums = engine.run(compiled, batch)
            total = sums if total is None else tf.nest.map_structure(np.add, total, sums)
        assert total is not None, "EvaluationBatches holds at least one batch, or raises."
        return _means(total)

    return evaluate


def make_scorer(model: EncoderDecoder, engine: Engine, dropless: bool = False) -> Callable[[Batch], np.ndarray]:
    """Compiles the log likelihood of given targets.

    Args:
      model: built by the engine.
      engine: where the model is.
      dropless: whether experts drop no token, whatever the evaluation capacity, so that a likelihood does not depend on
        the rest of the batch.

    Returns:
      score(batch of int32 [B, L]) -> float32 [B], in nats, the sum over a target's tokens; B is a multiple of the
      engine's `batch_multiple`.
    """

    def on_device(features: Features) -> tf.Tensor:
        logits = model(features, dropless=dropless)
        negative_log_likelihood, _ = cross_entropy(logits, features["decoder_target_tokens"])
        return -tf.reduce_sum(negative_log_likelihood * token_weights(features), axis=-1)

    compiled = engine.compile(on_device, gather=True)
    return functools.partial(engine.run, compiled)


def _means(total: EvaluationSums) -> dict[str, float]:
    tokens = max(float(total.tokens.tokens), 1.0)
    routing = {
        layer: type(metrics)(*(metric / total.batches for metric in metrics))
        for layer, metrics in total.routing.items()
    }
    return {
        "neg_log_perplexity": -float(total.tokens.negative_log_likelihood) / tokens,
        "accuracy": float(total.tokens.correct) / tokens,
        "target_tokens": tokens,
        **{name: float(value) / tokens for name, value in total.teacher.items()},
        "balance_loss": float(total.balance_loss / total.batches),
        **routing_scalars(routing),
    }
