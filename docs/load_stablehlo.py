"""Runs what `switch-tf export --format=stablehlo` wrote. Needs JAX and nothing else: copy it to where you want it."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

FORMAT_VERSION = 1


class ExportedModel:
    """An exported model.

    Attributes:
      manifest: the model's settings, its programs with the shapes of their arguments and results, and versions.
      weights: by name.
      slots: the optimizer's, by weight and name.
      evaluate: (weights, features) -> sums of the batch.
      logits: (weights, features) -> float32 [B, L, V].
      decode: (weights, features) -> {"tokens": int32 [B, n, T], "scores": float32 [B, n]}.
      train: (weights, slots, step, features, seed) -> {"weights", "slots", "metrics"}; takes over the memory of the
        weights and slots that it is given.
    """

    def __init__(self, folder: str):
        """Reads a folder; programs are compiled when they are called first.

        Raises:
          ValueError: if another version wrote the folder, or one of JAX that this one cannot read.
        """
        self._folder = pathlib.Path(folder)
        self.manifest = json.loads((self._folder / "manifest.json").read_text())
        if self.manifest["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{folder} has format {self.manifest['format_version']}, this loader reads {FORMAT_VERSION}."
            )
        self.weights = self._arrays("weights.npz")
        self.slots: dict[str, dict[str, jax.Array]] = {}
        for name, slot in self._arrays("slots.npz").items():
            weight, _, kind = name.rpartition("/")
            self.slots.setdefault(weight, {})[kind] = slot
        self.evaluate = self._program("evaluate")
        self.logits = self._program("logits")
        self.decode = self._program("decode")
        self.train = self._program("train", donate_argnums=(0, 1))

    def _arrays(self, file: str) -> dict[str, jax.Array]:
        with np.load(self._folder / file) as arrays:
            return {name: jax.numpy.asarray(arrays[name]) for name in arrays}

    def _program(self, name: str, **options: Any) -> Any:
        written = self.manifest["programs"][name]["jax_calling_convention"]
        oldest = jax.export.minimum_supported_calling_convention_version
        newest = jax.export.maximum_supported_calling_convention_version
        if not oldest <= written <= newest:
            remedy = "install a newer JAX" if written > newest else "export the model again, or install an older JAX"
            raise ValueError(
                f"{self._folder}/{name}.jax has calling convention {written}, "
                f"JAX {jax.__version__} reads {oldest} to {newest}: {remedy}."
            )
        exported = jax.export.deserialize(bytearray((self._folder / f"{name}.jax").read_bytes()))
        return jax.jit(exported.call, **options)
