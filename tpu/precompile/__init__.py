"""Ahead-of-time compilation of one step of an experiment with the TPU compiler, without a TPU."""
