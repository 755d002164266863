"""Describes a model as the command line does, prints which packages have run by then, and uses the others."""

import sys

import switch_tf.cli.main

HEAVY = ("flax", "jax", "matplotlib", "nltk", "pandas", "pyglove.core", "scipy", "seqio.dataset_providers", "sklearn")


def print_imported() -> None:
    """Prints which of the packages have run."""
    print([name for name in HEAVY if name in sys.modules])


switch_tf.cli.main.main(["describe", "--gin_file=gin/models/t5_tiny.gin"])
print_imported()

import tensorflow as tf  # noqa: E402

assert float(tf.keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")(tf.ones([1, 2]))[0, 0]) == 2.0

import tasks.python_docs  # noqa: E402

assert tasks.python_docs
print_imported()

import pandas  # noqa: E402
import seqio  # noqa: E402
import t5.data.glue_utils  # noqa: E402

assert pandas.DataFrame({"a": [1, 2]})["a"].sum() == 3
matthews = t5.data.glue_utils.GLUE_METRICS["cola"][0]
assert matthews([0, 1], [0, 1]) == {"matthews_corrcoef": 100.0}
assert t5.data.preprocessors is sys.modules["t5.data.preprocessors"]
assert issubclass(t5.data.TaskRegistry, seqio.TaskRegistry)
sampled = seqio.PyGloveTunableMixture("both", [("python_docs_span_corruption", 1.0)])
assert sampled.tasks[0].name == "python_docs_span_corruption"
print(seqio.__version__, seqio.Evaluator.__name__)
