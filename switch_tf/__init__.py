"""Switch Transformers in TensorFlow."""

import os

from switch_tf.installation import check_installation

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

check_installation()
