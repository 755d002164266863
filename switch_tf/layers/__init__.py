"""Keras layers, pure mathematics: they know axis names, and nothing of devices, data sets or optimizers."""
