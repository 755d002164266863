"""Writes what the second of two processes writes of a checkpoint: `... PREFIX`, a shard of a table of 4 numbers."""

import sys

import numpy as np

from switch_tf.checkpoints import tensor_bundle

tensor_bundle.write_shards(sys.argv[1], 1, [tensor_bundle.Shard("table", "4 2,2", np.array([3.0, 4.0], np.float32))])
