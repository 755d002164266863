"""Our Switch layer, training step and generation, in a process that is set up as that of `switch-tf train`."""

import os
import types
from collections.abc import Callable

import numpy as np

from benchmarks.peer_sizes import GENERATIONS, TARGETS, THREADS, Layer, features, on_first_call


def layer(sizes: Layer, training: bool = True) -> tuple[Callable, Callable]:
    """Builds a Switch layer of the sizes' weights on their inputs.

    Args:
      sizes: of the layer.
      training: whether the router's input is jittered.

    Returns:
      (a function that returns the output [G, S, M], one that computes the gradients of the inputs and all weights)
    """
    import tensorflow as tf

    from switch_tf.layers.context import ForwardContext
    from switch_tf.layers.initializers import weights_from_seed
    from switch_tf.layers.moe import Experts, SwitchFeedForward
    from switch_tf.layers.token_choice import SwitchRouter

    shape = {"d_model": sizes.d_model, "num_experts": sizes.num_experts}
    switch = SwitchFeedForward(
        router=SwitchRouter(**shape, name="router"),
        experts=Experts(**shape, d_ff=sizes.d_ff, name="experts"),
        group_size=sizes.group_size,
        capacity_factor=sizes.capacity_factor,
        eval_capacity_factor=sizes.capacity_factor,
        name="switch",
    )
    with weights_from_seed(0):
        switch.build()
    by_shape = {array.shape: array for array in sizes.weights().values()}
    for weight in switch.trainable_variables:
        weight.assign(by_shape[tuple(weight.shape)])
    x = tf.constant(sizes.inputs())
    weights = [weight.value for weight in switch.trainable_variables]

    @tf.function(autograph=False)
    def forward(x, seed):
        return switch(x, context=ForwardContext(training=training, seed=seed))

    @tf.function(autograph=False)
    def gradients(x, seed):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, routing = forward(x, seed)
            loss = tf.reduce_sum(y * y) + routing.balance_loss
        return tape.gradient(loss, [x, *weights])

    # A tensor, or the noise would be a constant of the program.
    seed = tf.constant(0)
    return lambda: forward(x, seed)[0].numpy(), lambda: gradients(x, seed)


def functions(num_experts: int, folder: str, dtype: str, skip_by_matrix: bool = False) -> dict[str, Callable]:
    """Layer, step and generation (the step alone in bfloat16) without arguments; reads Hugging Face's weights."""
    import tensorflow as tf

    from switch_tf import compat
    from switch_tf.decoding.decoder import decode
    from switch_tf.decoding.settings import Decoding
    from switch_tf.interop.huggingface_weights import load_weights
    from switch_tf.models.config import ModelConfig
    from switch_tf.models.encoder_decoder import EncoderDecoder
    from switch_tf.partitioning.engine import SingleEngine
    from switch_tf.partitioning.layout import Layout
    from switch_tf.runs.loop import make_update
    from switch_tf.training.adafactor import Adafactor
    from switch_tf.training.losses import Objective

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    # Default groups and capacity: each system is measured as its users train with it.
    config = ModelConfig(
        vocab_size=4096,
        d_model=256,
        d_kv=32,
        d_ff=1024,
        num_encoder_layers=4,
        num_decoder_layers=4,
        num_heads=8,
        num_experts=num_experts,
        activation_dtype=dtype,
    )
    model = EncoderDecoder(config)
    model.build()
    with np.load(os.path.join(folder, "weights.npz")) as weights:
        load_weights(model, weights)
    optimizer = Adafactor(learning_rate=1e-3, skip_by_matrix=skip_by_matrix)
    optimizer.build(model.trainable_variables)
    run = types.SimpleNamespace(
        model=model,
        optimizer=optimizer,
        engine=SingleEngine(Layout({}, {})),
        step=tf.Variable(0, dtype=tf.int64),
        experiment=types.SimpleNamespace(seed=0),
        teacher=None,
    )
    update = make_update(run, Objective(z_loss=0.0, router_z_loss=1e-3, balance_loss=1e-3), 1)
    batch = {name: tf.constant(value) for name, value in features().items()}

    def generation(rows: int, num_beams: int):
        settings, inputs = Decoding(decoder="beam", num_beams=num_beams), batch["encoder_input_tokens"][:rows]
        # No token ends a sequence: both decode all of them.
        decoded = tf.function(
            lambda tokens: decode(model, {"encoder_input_tokens": tokens}, settings, TARGETS, end_of_sequence=-1),
            autograph=False,
        )
        return lambda: decoded(inputs).tokens.numpy()

    layers = {"layer": on_first_call(lambda: layer(Layer(num_experts))[1])} if num_experts else {}
    generations = {name: generation(*sizes) for name, sizes in GENERATIONS.items()}

    def step():
        with run.engine.scope():
            return update(batch).loss.numpy()

    def compiled_step():
        step()
        compat.return_freed_memory()  # As `TrainingLoop` does.
        return step

    return {"step": on_first_call(compiled_step)} | (generations | layers if dtype == "float32" else {})
