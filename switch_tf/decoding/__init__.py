"""Decoding: token ids from a model."""
