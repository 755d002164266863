"""Imports TensorFlow as the command line does, prints which optional packages came with it, and uses one of them."""

import sys

from switch_tf import compat

compat.import_tensorflow()
import tensorflow as tf  # noqa: E402

assert float(tf.keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")(tf.ones([1, 2]))[0, 0]) == 2.0
print([name for name in ("jax", "matplotlib", "pandas", "scipy", "sklearn") if name in sys.modules])

import pandas  # noqa: E402

print(pandas.DataFrame({"a": [1, 2]})["a"].sum())
