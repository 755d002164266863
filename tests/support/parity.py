"""What Hugging Face computed for one model and one batch, and how far our model is from it. Needs no torch."""

import json
import pathlib
import types
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from switch_tf.interop.huggingface import config_from_huggingface
from switch_tf.interop.huggingface_weights import load_weights, to_their_weights
from switch_tf.models.encoder_decoder import EncoderDecoder, ModelOutput, weight_name
from switch_tf.training.losses import Objective, objective

GOLDEN = pathlib.Path(__file__).parents[1] / "interop" / "golden"
CROSS_ENTROPY = Objective(z_loss=0.0, balance_loss=0.0)


class Reference(NamedTuple):
    """A Hugging Face model with one batch and what it made of it.

    config: its settings, as in its config.json.
    weights: float32, by their names.
    batch: int32 [B, L] each, `encoder_input_tokens` and `decoder_target_tokens`, padded with 0.
    outputs: float32: `encoder` and `decoder` [B, L, M], `logits` [B, L, V], `loss` [] (cross-entropy alone) and, by
      our names of the sparse layers, their router's logits [B, L, E].
    gradients: of that loss, by their names.
    """

    config: dict
    weights: dict[str, np.ndarray]
    batch: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]

    def save(self, name: str) -> None:
        """Writes golden/<name>.npz."""
        arrays = {f"{part}/{key}": array for part in self._fields[1:] for key, array in getattr(self, part).items()}
        np.savez_compressed(GOLDEN / f"{name}.npz", config=json.dumps(self.config), **arrays)

    @classmethod
    def load(cls, name: str) -> "Reference":
        """Reads golden/<name>.npz."""
        parts = {part: {} for part in cls._fields[1:]}
        with np.load(GOLDEN / f"{name}.npz") as file:
            for key in file.files:
                if key != "config":
                    part, _, rest = key.partition("/")
                    parts[part][rest] = file[key]
            return cls(json.loads(str(file["config"])), **parts)

    def our_model(self) -> EncoderDecoder:
        """Makes our model of it."""
        model = EncoderDecoder(config_from_huggingface(types.SimpleNamespace(**self.config)))
        model.build()
        load_weights(model, self.weights)
        return model


def shifted(targets: np.ndarray) -> np.ndarray:
    """Decoder inputs: [B, L] -> [B, L], one to the right, 0 first."""
    return np.pad(targets, [(0, 0), (1, 0)])[:, :-1]


def features_of(batch: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    """The batch under seqio's names."""
    inputs = shifted(batch["decoder_target_tokens"])
    return {name: tf.constant(array) for name, array in {**batch, "decoder_input_tokens": inputs}.items()}


class Differences(NamedTuple):
    """Largest absolute differences over the largest absolute value of the reference; `dropped`: of real tokens."""

    encoder: float
    decoder: float
    logits: float
    router_logits: float
    loss: float
    gradients: float
    dropped: float

    def check(self) -> None:
        """Holds the project's promise: 1e-4 for what a model returns, 1e-3 for gradients."""
        for name, difference in self._asdict().items():
            if name != "dropped":
                assert difference <= (1e-3 if name == "gradients" else 1e-4), f"{name}: {self}"


def relative(ours: np.ndarray, theirs: np.ndarray, real: np.ndarray | None = None) -> float:
    """max |ours - theirs| / max |theirs|, where `real` (bool, leading axes) says."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    if real is not None:
        ours, theirs = ours[real], theirs[real]
    return float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-30))


def run(model: EncoderDecoder, batch: dict[str, np.ndarray]) -> tuple[dict, dict, dict]:
    """Runs our model: (outputs and gradients as a `Reference` has them, the routings)."""
    features = features_of(batch)
    with tf.GradientTape() as tape:
        memory, encoder_routings = model.encode(features)
        logits, decoder_routings = model.decode(features, memory)
        routings = encoder_routings | decoder_routings
        num_tokens = tf.constant(float(np.count_nonzero(batch["decoder_target_tokens"])))
        loss, _ = objective(ModelOutput(logits, routings), features, CROSS_ENTROPY, num_tokens)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
    states, _ = model.decode_states(features, memory)
    outputs = {"encoder": memory, "decoder": states, "logits": logits, "loss": loss}
    outputs |= {name: routing.logits for name, routing in routings.items()}
    by_their_names = {}
    for weight, gradient in zip(model.trainable_variables, gradients):
        by_their_names |= to_their_weights(model.config, weight_name(weight), tf.convert_to_tensor(gradient).numpy())
    return outputs, by_their_names, routings


def differences(model: EncoderDecoder, reference: Reference) -> Differences:
    """Runs our model on the reference's batch and compares: real tokens, every weight's gradient."""
    outputs, gradients, routings = run(model, reference.batch)
    assert outputs.keys() == reference.outputs.keys() and gradients.keys() == reference.gradients.keys()
    inputs_real = reference.batch["encoder_input_tokens"] != 0
    targets_real = reference.batch["decoder_target_tokens"] != 0

    def difference(name: str) -> float:
        real = None if name == "loss" else inputs_real if name.startswith("encoder") else targets_real
        return relative(outputs[name], reference.outputs[name], real)

    return Differences(
        **{name: difference(name) for name in ("encoder", "decoder", "logits", "loss")},
        router_logits=max([difference(name) for name in routings], default=0.0),
        gradients=max(relative(gradients[name], theirs) for name, theirs in reference.gradients.items()),
        dropped=max([float(routing.metrics.fraction_dropped) for routing in routings.values()], default=0.0),
    )
