"""Encoder-decoders, and their settings."""

from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder

__all__ = ["EncoderDecoder", "ModelConfig"]
