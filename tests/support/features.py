"""Random batches."""

import numpy as np


def random_features(batch: int = 4, inputs: int = 16, targets: int = 8, vocab_size: int = 96, seed: int = 0) -> dict:
    """Random features under seqio's names; the last row is padded at its end."""
    random = np.random.default_rng(seed)
    encoder = random.integers(2, vocab_size, [batch, inputs], dtype=np.int32)
    target = random.integers(2, vocab_size, [batch, targets], dtype=np.int32)
    encoder[-1, inputs // 2 :] = 0
    target[-1, targets // 2 :] = 0
    shifted = np.concatenate([np.zeros([batch, 1], np.int32), target[:, :-1]], axis=1)
    return {
        "encoder_input_tokens": encoder,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": target,
        "decoder_loss_weights": (target != 0).astype(np.int32),
    }
