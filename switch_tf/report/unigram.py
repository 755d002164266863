"""The unigram model, which sees no context: what any trained model must beat."""

from collections.abc import Iterable

import numpy as np

from switch_tf.data.batches import Batch


def unigram_neg_log_perplexity(train: Iterable[Batch], held_out: Iterable[Batch], vocab_size: int) -> float:
    """Scores held-out targets by how often each token is a target in training: the model that sees no context.

    Args:
      train: batches whose real target tokens are counted; every token of the vocabulary counts once more.
      held_out: batches to score.
      vocab_size: V.

    Returns:
      Mean log likelihood of a real target token, in nats.
    """

    def counts(batches: Iterable[Batch]) -> np.ndarray:
        total = np.zeros(vocab_size)
        for batch in batches:
            tokens = batch["decoder_target_tokens"].ravel()
            total += np.bincount(tokens[tokens != 0], minlength=vocab_size)
        return total

    frequency = counts(train) + 1.0
    occurrences = counts(held_out)
    return float(np.sum(occurrences * np.log(frequency / frequency.sum())) / occurrences.sum())
