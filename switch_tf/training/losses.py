"""The objective: cross-entropy of real target tokens, z-loss, and the routers' balance loss."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import gin
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers.embedding import sharded_argmax
from switch_tf.layers.routing import Routing
from switch_tf.models.encoder_decoder import ModelOutput


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Objective:
    """The weights of the auxiliary losses, which training minimizes together with cross-entropy.

    Attributes:
      z_loss: weight of mean(log^2 Z), which keeps the logits' normalizer Z near 1 (Mesh TensorFlow, T5X: 1e-4).
      balance_loss: alpha of Eq. 4, the weight of the balance loss.
      balance_loss_over_layers: "sum" as in the paper and Mesh TensorFlow, or "mean" as in T5X, where the same alpha is
        weaker by a factor of the number of sparse layers.
      router_z_loss: weight of the routers' mean(log^2 Z), summed over the sparse layers (ST-MoE: 1e-3). (Mesh
        TensorFlow multiplies its own by alpha once more.)
    """

    z_loss: float = 1e-4
    balance_loss: float = 1e-2
    balance_loss_over_layers: str = "sum"
    router_z_loss: float = 0.0

    def __post_init__(self) -> None:
        for name in ("z_loss", "balance_loss", "router_z_loss"):
            if getattr(self, name) < 0:
                raise SettingError(f"Objective.{name} = {getattr(self, name)} must be 0 or more.")
        if self.balance_loss_over_layers not in ("sum", "mean"):
            raise SettingError(
                f"Objective.balance_loss_over_layers = '{self.balance_loss_over_layers}' must be 'sum' or 'mean'."
            )


class TokenLosses(NamedTuple):
    """Sums over real target tokens, float32 scalars: their negative log likelihood in nats, log^2 Z, hits, count."""

    negative_log_likelihood: tf.Tensor
    squared_log_z: tf.Tensor
    correct: tf.Tensor
    tokens: tf.Tensor


def token_weights(features: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns float32 [B, L]: `decoder_loss_weights` if there, else 1 for every target that is not padding."""
    weights = features.get("decoder_loss_weights")
    if weights is None:
        weights = tf.not_equal(features["decoder_target_tokens"], 0)
    return tf.cast(weights, tf.float32)


def cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross-entropy of ops that keep every layout, including that of a sharded vocabulary.

    Its gradient is written out, as the automatic one makes several more passes over [B, L, V] and keeps a one-hot
    tensor of that size.

    Args:
      logits: float32 [B, L, V].
      targets: int32 [B, L].

    Returns:
      (negative log likelihood of each target in nats, log Z), float32 [B, L].
    """

    @tf.custom_gradient
    def of_logits(logits: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., tf.Tensor]]:
        highest = tf.reduce_max(logits, axis=-1, keepdims=True)
        exponentials = tf.exp(logits - highest)
        total = tf.reduce_sum(exponentials, axis=-1, keepdims=True)
        log_z = tf.squeeze(highest + tf.math.log(total), -1)
        is_target = tf.equal(tf.range(logits.shape[-1]), tf.expand_dims(targets, -1))
        of_target = tf.reduce_sum(tf.where(is_target, logits, 0.0), axis=-1)

        def gradient(of_likelihood: tf.Tensor, of_log_z: tf.Tensor) -> tf.Tensor:
            """d log Z = softmax; d likelihood = softmax - one-hot target."""
            of_softmax = tf.expand_dims(of_likelihood + of_log_z, -1) / total
            return exponentials * of_softmax - tf.where(is_target, tf.expand_dims(of_likelihood, -1), 0.0)

        return (log_z - of_target, log_z), gradient

    return of_logits(logits)


@tf.custom_gradient
def log_normalizer(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns log Z = log(sum(exp(logits))), float32 [B, L], of logits [B, L, V]; of ops that keep every layout.

    Its gradient is written out, as in `cross_entropy`.
    """
    highest = tf.reduce_max(logits, axis=-1, keepdims=True)
    exponentials = tf.exp(logits - highest)
    total = tf.reduce_sum(exponentials, axis=-1, keepdims=True)

    def gradient(of_log_z: tf.Tensor) -> tf.Tensor:
        return exponentials * (tf.expand_dims(of_log_z, -1) / total)

    return tf.squeeze(highest + tf.math.log(total), -1), gradient


def token_losses(logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> TokenLosses:
    """Computes the sums over a batch that the objective and evaluation need.

    Args:
      logits: float32 [B, L, V].
      targets: int32 [B, L].
      weights: float32 [B, L], 1 for a real token.

    Returns:
      Sums over the batch.
    """
    negative_log_likelihood, log_z = cross_entropy(logits, targets)
    hits = tf.equal(sharded_argmax(logits), targets)
    return TokenLosses(
        negative_log_likelihood=tf.reduce_sum(negative_log_likelihood * weights),
        squared_log_z=tf.reduce_sum(tf.square(log_z) * weights),
        correct=tf.reduce_sum(tf.cast(hits, tf.float32) * weights),
        tokens=tf.reduce_sum(weights),
    )


def mean_over_layers(values: Iterable[tf.Tensor]) -> tf.Tensor:
    """Mean of a loss over the sparse layers; 0 in a dense model."""
    of_layers = list(values)
    return tf.add_n(of_layers) / len(of_layers) if of_layers else tf.constant(0.0)


def routing_loss(routings: Mapping[str, Routing], settings: Objective) -> tf.Tensor:
    """Balance loss and router z-loss of all sparse layers, weighted; float32 scalar."""
    num_layers = len(routings)
    balance_layers = num_layers if settings.balance_loss_over_layers == "sum" else 1
    balance = mean_over_layers(routing.balance_loss for routing in routings.values())
    z_loss = mean_over_layers(routing.z_loss for routing in routings.values())
    return settings.balance_loss * balance_layers * balance + settings.router_z_loss * num_layers * z_loss


def objective(
    output: ModelOutput,
    features: Mapping[str, tf.Tensor],
    settings: Objective,
    num_tokens: tf.Tensor,
    hard_share: float | tf.Tensor = 1.0,
) -> tuple[tf.Tensor, TokenLosses]:
    """The loss of one batch, or of one microbatch or replica of it.

    Args:
      output: the model's, with routings.
      features: the batch.
      settings: the weights of the auxiliary losses.
      num_tokens: float32 scalar, the real target tokens of the whole batch, which normalizes the loss, so that alpha
        means the same for every batch size and amount of padding.
      hard_share: weight of the cross-entropy; less than 1 beside a teacher.

    Returns:
      (float32 scalar loss, the sums that it was computed from).
    """
    sums = token_losses(output.logits, features["decoder_target_tokens"], token_weights(features))
    loss = (hard_share * sums.negative_log_likelihood + settings.z_loss * sums.squared_log_z) / num_tokens
    return loss + routing_loss(output.routings, settings), sums
