"""The unigram model."""

import numpy as np

from switch_tf.report.unigram import unigram_neg_log_perplexity


def test_unigram_scores_by_frequency():
    train = [{"decoder_target_tokens": np.array([[2, 2, 2, 3, 0, 0]])}]
    held_out = [{"decoder_target_tokens": np.array([[2, 3, 1, 0]])}]
    # Counts plus one for five tokens: 1, 1, 4, 2, 1 of 9.
    expected = np.mean(np.log([4 / 9, 2 / 9, 1 / 9]))
    np.testing.assert_allclose(unigram_neg_log_perplexity(train, held_out, 5), expected)
