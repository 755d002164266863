"""A Switch layer in JAX, with masks and einsums as flaxformer (T5X) has it; flaxformer is on no package index.

It is compiled by XLA as one program, forward and backward.
"""

from collections.abc import Callable

from benchmarks.peer_sizes import Layer, on_first_call


def layer(sizes: Layer, training: bool = True) -> tuple[Callable, Callable]:
    """Builds a Switch layer of the sizes' weights on their inputs.

    Args:
      sizes: of the layer.
      training: whether the router's input is jittered.

    Returns:
      (a function that returns the output [G, S, M], one that computes the gradients of the inputs and all weights)
    """
    import jax
    import jax.numpy as jnp

    weights, x = jax.tree.map(jnp.asarray, (sizes.weights(), sizes.inputs()))

    def masks(router, x, key):
        """Returns (dispatch and combine, [G, S, E, C], and the balance loss)."""
        if training:
            x = x * jax.random.uniform(key, x.shape, minval=0.99, maxval=1.01)
        probabilities = jax.nn.softmax(jnp.einsum("gsm,me->gse", x, router))
        gate = jnp.max(probabilities, axis=-1)
        chosen = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), sizes.num_experts)
        balance_loss = sizes.num_experts**2 * jnp.mean(chosen.mean(axis=1) * probabilities.mean(axis=1))
        position = jnp.cumsum(chosen, axis=1) * chosen - 1.0
        # Of a position that is no slot, and of an expert that was not chosen, one_hot makes zeros.
        dispatch = jax.nn.one_hot(position, sizes.capacity)
        return dispatch, gate[..., None, None] * dispatch, balance_loss

    def forward(weights, x, key):
        dispatch, combine, balance_loss = masks(weights["router"], x, key)
        slots = jnp.einsum("gsm,gsec->egcm", x, dispatch)
        hidden = jax.nn.relu(jnp.einsum("egcm,emh->egch", slots, weights["wi"]))
        outputs = jnp.einsum("egch,ehm->egcm", hidden, weights["wo"])
        return jnp.einsum("egcm,gsec->gsm", outputs, combine), balance_loss

    def loss(weights, x, key):
        y, balance_loss = forward(weights, x, key)
        return jnp.sum(y * y) + balance_loss

    key = jax.random.key(0)
    output = jax.jit(lambda: forward(weights, x, key)[0])
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return output, lambda: jax.block_until_ready(gradients(weights, x, key))


def functions(num_experts: int, folder: str, dtype: str) -> dict[str, Callable]:
    """The layer as a function without arguments, in float32 alone."""
    del folder
    return {"layer": on_first_call(lambda: layer(Layer(num_experts))[1])} if num_experts and dtype == "float32" else {}
