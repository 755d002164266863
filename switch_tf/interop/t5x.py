"""T5X's checkpoints as sources and targets: T5 1.1 and its like, Switch Transformers of flaxformer."""

import os
from collections.abc import Callable

from switch_tf import storage
from switch_tf.errors import SettingError
from switch_tf.interop import architecture, t5x_files, t5x_names, t5x_slots
from switch_tf.interop.lazy_tensors import LazyTensor, LazyTensors
from switch_tf.interop.sources import Source, config_from_weights


def read_t5x(path: str) -> Source:
    """Opens a checkpoint.

    Args:
      path: `checkpoint_N`, or the folder of several for the newest; local or in a bucket.

    Returns:
      The weights under our names, and the step. What T5X has in gin files (dropout, capacity) is as ours has it.

    Raises:
      SettingError: if there is none, it is damaged, or our model has no counterpart.
    """
    folder = t5x_files.find_folder(path)
    if folder is None:
        raise SettingError(f"{path} holds no checkpoint of T5X: name a folder checkpoint_N.")
    tree = t5x_files.read_tree(folder)
    tensors = t5x_names.unscanned(tree.weights)
    t5x_names.refuse_bias_in_each_layer(tensors, path)
    found = architecture.collect(tensors, t5x_names.NAMES, path)
    config = config_from_weights(architecture.settings_from_weights(found, path))
    weights = architecture.our_weights(found, config, path)
    # Of scanned layers their means run over the layers, too.
    slots = tree.slots if tensors.keys() == tree.weights.keys() else {}
    return Source("t5x", path, config, weights, tree.step, slots)


def slots_of(source: Source) -> dict[str, LazyTensor]:
    """Returns Adafactor's slots of a checkpoint of T5X under our names.

    Raises:
      SettingError: if it has none.
    """
    return t5x_slots.our_slots(source.weights, source.slots)


def write_t5x(
    path: str,
    weights: LazyTensors,
    step: int,
    slots: LazyTensors | None = None,
    written: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes `checkpoint_N` into a folder.

    Args:
      path: the folder, there and empty.
      weights: under our names.
      step: N.
      slots: Adafactor's, under our names; None to write weights alone.
      written: called with the bytes of what has been written.

    Raises:
      SettingError, OSError: if it cannot be written, or T5X has no such weight.
    """
    folder = os.path.join(path, f"checkpoint_{step}")
    storage.make_folder(folder)
    theirs = {} if slots is None else t5x_slots.their_slots(weights, slots)
    t5x_files.write_tree(folder, t5x_names.their_weights(weights), theirs, step, written)
