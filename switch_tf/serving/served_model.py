"""A SavedModel of `switch-tf export`, loaded for serving."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 (registers the tokenizer's operations)
from tensorflow.core.framework import types_pb2

from switch_tf import storage
from switch_tf.errors import SettingError

_DEFAULT = "serving_default"
_DESCRIPTION = os.path.join("assets.extra", "switch_tf.json")


class ServedModel:
    """The newest version in a folder, as TensorFlow Serving would load it.

    Attributes:
      version: the number of the version's folder; "1" where the folder is a SavedModel itself.
      description: of `assets.extra/switch_tf.json`, {} where there is none.
    """

    def __init__(self, folder: str):
        """Loads the model and runs its default signature once.

        Args:
          folder: with versions in folders named by numbers, or a SavedModel.

        Raises:
          SettingError: if it holds no SavedModel.
        """
        path, self.version = _newest(folder)
        try:
            self._model = tf.saved_model.load(os.path.dirname(storage.literal(os.path.join(path, "saved_model.pb"))))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise SettingError(f"{path} cannot be loaded as a SavedModel: {storage.reason_of(error)}.") from error
        self.description: dict[str, Any] = {}
        if storage.exists(os.path.join(path, _DESCRIPTION)):
            with tf.io.gfile.GFile(os.path.join(path, _DESCRIPTION)) as file:
                self.description = json.load(file)
        # The first call optimizes the graphs of all shapes; no client is to wait for that.
        if _DEFAULT in self.signatures:
            self.run(_DEFAULT, {name: [b""] for name in self.input_names(_DEFAULT)})

    @property
    def signatures(self) -> Mapping[str, Any]:
        """The signatures by name."""
        return self._model.signatures

    def input_names(self, signature: str) -> list[str]:
        """Returns the names of a signature's inputs."""
        return sorted(self.signatures[signature].structured_input_signature[1])

    def run(self, signature: str, inputs: Mapping[str, Sequence[bytes]]) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
          signature: its name.
          inputs: n texts for each input.

        Returns:
          Its outputs, arrays with n rows.
        """
        outputs = self.signatures[signature](**{name: tf.constant(texts) for name, texts in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def metadata(self) -> dict[str, Any]:
        """Returns the signatures as TensorFlow Serving describes them."""
        return {
            name: {
                "inputs": _tensors(function.structured_input_signature[1]),
                "outputs": _tensors(function.structured_outputs),
                "method_name": "tensorflow/serving/predict",
                "defaults": {},
            }
            for name, function in self.signatures.items()
        }


def _newest(folder: str) -> tuple[str, str]:
    if storage.exists(os.path.join(folder, "saved_model.pb")):
        name = os.path.basename(os.path.normpath(folder))
        return folder, name if name.isdigit() else "1"
    versions = [name for name in storage.list_folder(folder) if name.isdigit()]
    if not versions:
        raise SettingError(f"{folder} holds no SavedModel: write one with switch-tf export --output={folder}.")
    newest = max(versions, key=int)
    return os.path.join(folder, newest), newest


def _tensors(specs: Mapping[str, tf.TensorSpec]) -> dict[str, Any]:
    def described(name: str, spec: tf.TensorSpec) -> dict[str, Any]:
        dimensions = [{"size": str(-1 if size is None else size), "name": ""} for size in spec.shape]
        dtype = types_pb2.DataType.Name(spec.dtype.as_datatype_enum)
        return {"dtype": dtype, "tensor_shape": {"dim": dimensions, "unknown_rank": False}, "name": name}

    return {name: described(name, spec) for name, spec in specs.items()}
