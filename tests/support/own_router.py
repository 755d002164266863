"""A router as a user would add it in a module of their own, which a gin file imports."""

import tensorflow as tf

from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.router_base import Scores, register_router
from switch_tf.layers.routing import Routing
from switch_tf.layers.token_choice import SwitchRouter


@register_router("position_modulo")
class PositionModuloRouter(SwitchRouter):
    """Sends the token at position i of a group to expert (i // stride) % E, with the router's probability as gate."""

    def __init__(self, *, stride: int = 1, **settings):
        super().__init__(**settings)
        self.stride = stride

    def assign(self, scores: Scores, mask: tf.Tensor, capacity: int, context: ForwardContext = INFERENCE) -> Routing:
        positions = tf.range(scores.logits.shape[1]) // self.stride % self.num_experts
        preference = tf.broadcast_to(tf.one_hot(positions, self.num_experts), scores.logits.shape)
        return super().assign(scores._replace(preference=preference), mask, capacity, context)
