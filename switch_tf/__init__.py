"""Switch Transformers in TensorFlow."""

import os
from typing import TYPE_CHECKING, Any

from switch_tf.installation import check_installation

if TYPE_CHECKING:
    from switch_tf.runs.predictor import Predictor

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

check_installation()


def load(model_dir: str, **settings: Any) -> "Predictor":
    """Loads a trained model, to predict, score and encode texts; see `switch_tf.runs.loading.load`."""
    from switch_tf.runs import loading

    return loading.load(model_dir, **settings)
