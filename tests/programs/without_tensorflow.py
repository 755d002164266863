"""Runs `switch-tf` and fails if it imports TensorFlow or another package that takes seconds."""

import sys

from switch_tf.cli import main as command_line

if __name__ == "__main__":
    command_line.main(sys.argv[1:])
    slow = {"tensorflow", "jax", "gin", "seqio"} & set(sys.modules)
    assert not slow, slow
