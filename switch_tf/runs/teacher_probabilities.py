"""Writes what a model predicts for a task's targets, for students that are trained without it in memory."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tqdm

from switch_tf import storage
from switch_tf.data import teacher_cache
from switch_tf.data.batches import Batch
from switch_tf.data.evaluation_batches import EvaluationBatches, evaluation_batches
from switch_tf.errors import SettingError
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engine import Engine
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import load_run
from switch_tf.runs.teacher_settings import dropless
from switch_tf.training import distillation
from switch_tf.training.losses import cross_entropy, log_normalizer, token_weights


@dataclasses.dataclass(frozen=True)
class Probabilities:
    """What to write.

    Attributes:
      folder: where to; local or in a bucket.
      num_choices: K, how many ids of each position.
      split: of the task.
      num_examples: how many examples at most; None for the whole split.
      temperature: divides the logits; a student's TEACHER_TEMPERATURE must be the same.
    """

    folder: str | None
    num_choices: int
    split: str = "train"
    num_examples: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.folder is None:
            raise SettingError("--probabilities needs --output=FOLDER, the folder to write to.")
        if self.num_choices < 1:
            raise SettingError(f"--probabilities={self.num_choices} must be at least 1.")
        if self.num_examples is not None and self.num_examples < 1:
            raise SettingError(f"--num_examples={self.num_examples} must be at least 1.")
        if not self.temperature > 0:
            raise SettingError(f"--softmax_temperature={self.temperature} must be positive.")


def make_predictor(
    model: EncoderDecoder, engine: Engine, num_choices: int, temperature: float
) -> Callable[[Batch], dict[str, np.ndarray]]:
    """Compiles the prediction of a batch's targets.

    Args:
      model: built by the engine.
      engine: where the model is.
      num_choices: K.
      temperature: T.

    Returns:
      predict(batch of int32 [B, L]) -> the features that `CachedTeacher` takes, ids in the order of their probability:
      [B, L K] and [B, L].
    """

    def on_device(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logits = model(features)
        negative_log_likelihood, _ = cross_entropy(logits, features["decoder_target_tokens"])
        scaled = logits / temperature
        values, tokens = tf.math.top_k(scaled, num_choices)
        batch, length, _ = tokens.shape
        log_probabilities = values - tf.expand_dims(log_normalizer(scaled), -1)
        return {
            distillation.TEACHER_TOKENS: tf.reshape(tokens, [batch, length * num_choices]),
            distillation.TEACHER_LOG_PROBABILITIES: tf.reshape(log_probabilities, [batch, length * num_choices]),
            distillation.TEACHER_OF_TARGETS: -negative_log_likelihood,
        }

    compiled = engine.compile(on_device, gather=True)

    def predict(batch: Batch) -> dict[str, np.ndarray]:
        return engine.run(compiled, batch)

    return predict


class _Means:
    """Means over the real target tokens of what has been written."""

    def __init__(self) -> None:
        self._tokens = self._tail = self._log_likelihood = 0.0

    def add(self, features: Batch, num_choices: int) -> None:
        """Adds a batch with its predictions."""
        weights = token_weights(features).numpy()
        log_probabilities = features[distillation.TEACHER_LOG_PROBABILITIES].reshape([*weights.shape, num_choices])
        self._tokens += weights.sum()
        self._tail += (weights * np.maximum(1 - np.exp(log_probabilities).sum(-1), 0)).sum()
        self._log_likelihood += (weights * features[distillation.TEACHER_OF_TARGETS]).sum()

    def added_to(self, description: teacher_cache.TeacherCache) -> teacher_cache.TeacherCache:
        """Returns the description of a cache with these means."""
        tokens = max(self._tokens, 1.0)
        tail, log_likelihood = float(self._tail / tokens), float(self._log_likelihood / tokens)
        return dataclasses.replace(description, tail=tail, neg_log_perplexity=log_likelihood)


def write_probabilities(wanted: Probabilities, step: int | None = None) -> None:
    """Writes the most probable ids of every target position of a task, by the configured experiment's model.

    Args:
      wanted: what to write.
      step: of which checkpoint; None for the newest.

    Raises:
      SettingError: if there is no such checkpoint or split, or the folder cannot be written.
    """
    folder, num_choices = wanted.folder, wanted.num_choices
    assert folder is not None, "`Probabilities` checks it."
    experiment = Experiment()
    experiment = dataclasses.replace(experiment, model=dropless(experiment.model))
    if num_choices > experiment.model.vocab_size:
        raise SettingError(f"--probabilities={num_choices} is more than VOCAB_SIZE = {experiment.model.vocab_size}.")
    if teacher_cache.is_complete(folder):
        raise SettingError(f"--output={folder} holds a cache already: name another folder.")
    run = load_run(experiment, step)
    engine = run.engine
    predict = make_predictor(run.model, engine, num_choices, wanted.temperature)
    batches = evaluation_batches(
        experiment.mixture_or_task,
        experiment.task_feature_lengths,
        experiment.batch_size,
        None,
        wanted.split,
        seed=experiment.seed,
        cache=experiment.cache,
    )
    means = _Means()
    examples = _examples(batches, predict, num_choices, means, wanted.num_examples, engine.is_first_process)
    if not engine.is_first_process:
        collections.deque(examples, maxlen=0)
        engine.processes.close()
        return
    description = teacher_cache.TeacherCache(
        teacher=f"{experiment.model_dir}, step {int(run.step.numpy())}",
        mixture_or_task=experiment.mixture_or_task,
        split=wanted.split,
        lengths=dict(experiment.task_feature_lengths),
        vocab_size=experiment.model.vocab_size,
        vocabulary=experiment.vocabulary_digest(),
        num_choices=num_choices,
        temperature=wanted.temperature,
    )
    vocabulary = experiment.vocabulary_path if storage.exists(experiment.vocabulary_path) else None
    try:
        description = means.added_to(teacher_cache.write_examples(folder, examples, description, vocabulary))
        teacher_cache.complete(folder, description)
    except (OSError, tf.errors.OpError) as error:
        reason = storage.refusal(error) or storage.reason_of(error)
        raise SettingError(f"--output={folder} cannot be written: {reason}.") from error
    engine.say(
        f"{os.path.normpath(folder)}: {description.num_examples:,} examples, {num_choices} ids of each position; their "
        f"tail has {description.tail:.4f} of the mass. Teacher's negative log perplexity: "
        f"{description.neg_log_perplexity:.4f}."
    )
    engine.processes.close()


def _examples(
    batches: EvaluationBatches,
    predict: Callable[[Batch], dict[str, np.ndarray]],
    num_choices: int,
    means: _Means,
    num_examples: int | None,
    is_shown: bool,
) -> Iterator[Batch]:
    """Yields the examples with their predictions, one by one."""
    left = num_examples
    with tqdm.tqdm(total=num_examples, unit="example", desc="predict", leave=False, disable=not is_shown) as bar:
        for batch in batches:
            # The last batch is filled up with rows of padding.
            real = np.flatnonzero(np.any(batch["decoder_target_tokens"] != 0, axis=-1))[:left]
            features = {name: array[real] for name, array in (batch | predict(batch)).items()}
            means.add(features, num_choices)
            for row in range(len(real)):
                yield {name: array[row] for name, array in features.items()}
            bar.update(len(real))
            if left is not None:
                left -= len(real)
                if left == 0:
                    return
