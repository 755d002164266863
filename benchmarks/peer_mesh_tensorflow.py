"""The Switch layer and the training step of Mesh TensorFlow 0.1.21, the paper's own code: a graph on one CPU.

That release does not import with TensorFlow 2.20, which has neither `tf.estimator` nor the private function that
Mesh TensorFlow registers a type with; `mesh_tensorflow` supplies both, and nothing of what is measured runs through
them.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

from benchmarks.peer_sizes import BATCH, INPUTS, TARGETS, THREADS, Layer, features, on_first_call


def mesh_tensorflow() -> types.ModuleType:
    """Imports Mesh TensorFlow."""
    import tensorflow
    import tensorflow.compat.v1 as tf
    from tensorflow.python import tpu
    from tensorflow.python.framework import ops, tensor_conversion_registry

    train = {name: getattr(tf.train, name) for name in ("CheckpointSaverListener", "SessionRunHook")}
    modes = types.SimpleNamespace(TRAIN="train", EVAL="eval", PREDICT="infer")
    tensorflow.estimator = tf.estimator = types.SimpleNamespace(ModeKeys=modes, **train)
    tpu.tpu_config = tpu.tpu_estimator = None
    register = tensor_conversion_registry.register_tensor_conversion_function
    ops.register_tensor_conversion_function = register

    import mesh_tensorflow as mtf

    tf.disable_eager_execution()
    tf.logging.set_verbosity(tf.logging.ERROR)
    return mtf


def mesh_of(mtf) -> tuple[Any, Any]:
    """Returns (a mesh of one CPU, its implementation)."""
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    return mesh, mtf.placement_mesh_impl.PlacementMeshImpl(mtf.convert_to_shape("all:1"), [], [""])


def in_a_graph_of_its_own(build: Callable) -> Callable:
    """Lets a function build what it builds in a new graph."""

    @functools.wraps(build)
    def built(*arguments, **settings):
        import tensorflow.compat.v1 as tf

        with tf.Graph().as_default():
            return build(*arguments, **settings)

    return built


def session():
    """A session of the benchmark's number of threads."""
    import tensorflow.compat.v1 as tf

    return tf.Session(config=tf.ConfigProto(intra_op_parallelism_threads=THREADS, inter_op_parallelism_threads=THREADS))


@in_a_graph_of_its_own
def layer(sizes: Layer, training: bool = True) -> tuple[Callable, Callable]:
    """Builds a Switch layer of the sizes' weights on their inputs.

    Args:
      sizes: of the layer.
      training: whether the router's input is jittered.

    Returns:
      (a function that returns the output [G, S, M], one that computes the gradients of the inputs and all weights)
    """
    import tensorflow.compat.v1 as tf

    mtf = mesh_tensorflow()
    from mesh_tensorflow.transformer import moe

    x, (mesh, implementation) = sizes.inputs(), mesh_of(mtf)
    dims = [mtf.Dimension(name, size) for name, size in zip(("batch", "length", "d_model"), x.shape)]
    fed = tf.Variable(x, trainable=False)
    inputs = mtf.import_tf_tensor(mesh, fed, mtf.Shape(dims))
    context = types.SimpleNamespace(
        model=types.SimpleNamespace(
            ensemble_dim=None, model_dim=dims[-1], layout=mtf.convert_to_layout_rules(""), mesh_shape=mtf.Shape([])
        ),
        length_dim=dims[1],
        train=training,
        variable_dtype=mtf.VariableDType(tf.float32),
        nonpadding=mtf.ones(mesh, mtf.Shape(dims[:-1])),
        num_microbatches=1,
        input_embeddings=None,
        losses=[],
    )
    experts = moe.MoE1D(
        num_experts=sizes.num_experts,
        hidden_size=sizes.d_ff,
        group_size=sizes.group_size,
        capacity_factor_train=sizes.capacity_factor,
        capacity_factor_eval=sizes.capacity_factor,
        moe_gating="switch",
    )
    y = experts.call(context, inputs)
    loss = mtf.reduce_sum(mtf.square(y)) + mtf.add_n(context.losses)
    variables = mesh.graph.trainable_variables
    gradients = mtf.gradients([loss], [inputs, *(variable.outputs[0] for variable in variables)])
    lowering = mtf.Lowering(mesh.graph, {mesh: implementation})
    output = lowering.export_to_tf_tensor(y)
    # One element of each: TensorFlow leaves out what only a `tf.group` depends on, and a whole one would be copied.
    backward = [tf.reshape(lowering.export_to_tf_tensor(gradient), [-1])[:1] for gradient in gradients]
    running = session()
    running.run(tf.global_variables_initializer())
    by_shape = {array.shape: array for array in sizes.weights().values()}
    for master in tf.trainable_variables():
        master.load(by_shape[tuple(master.shape)], running)
    running.run(lowering.copy_masters_to_slices())
    return lambda: running.run(output), lambda: running.run(backward)


def functions(num_experts: int, folder: str, dtype: str) -> dict[str, Callable]:
    """The layer and a model's training step, with weights of its own, without arguments; in float32 alone."""
    del folder
    if dtype != "float32":
        return {}
    layers = {"layer": on_first_call(lambda: layer(Layer(num_experts))[1])} if num_experts else {}
    return {"step": training_step(num_experts), **layers}


@in_a_graph_of_its_own
def training_step(num_experts: int) -> Callable:
    """Builds a model of the benchmark's sizes; returns its training step, which returns the loss."""
    import tensorflow.compat.v1 as tf

    mtf = mesh_tensorflow()
    from mesh_tensorflow import optimize
    from mesh_tensorflow.transformer import moe, transformer
    from mesh_tensorflow.transformer.transformer_layers import DenseReluDense, EncDecAttention, SelfAttention

    def stack(is_decoder: bool):
        layers = []
        for index in range(4):
            heads = {"num_heads": 8, "key_value_size": 32}
            layers.append(SelfAttention(**heads, relative_attention_type="bias_shared"))
            if is_decoder:
                layers.append(EncDecAttention(**heads))
            if num_experts and index % 2:
                # Capacity factor 1.25 in groups of 1,024 tokens are its defaults.
                layers.append(moe.MoE1D(num_experts=num_experts, hidden_size=1024, moe_gating="switch"))
            else:
                layers.append(DenseReluDense(hidden_size=1024))
        sublayers = (
            transformer.sublayer_rms_norm,
            transformer.sublayer_call_layer,
            transformer.sublayer_dropout,
            transformer.sublayer_residual,
        )
        return transformer.LayerStack(
            layers,
            sublayers_initial=[transformer.sublayer_dropout],
            sublayers_per_layer=list(sublayers),
            sublayers_final=[transformer.sublayer_rms_norm, transformer.sublayer_dropout],
        )

    def half(is_decoder: bool):
        return transformer.Unitransformer(
            stack(is_decoder),
            d_model=256,
            input_vocab_size=4096,
            output_vocab_size=4096 if is_decoder else None,
            autoregressive=is_decoder,
            max_length=512,
            shared_embedding_and_softmax_weights=is_decoder,
            z_loss=0.0,
            positional_embedding=False,
            name="decoder" if is_decoder else "encoder",
            layout=mtf.convert_to_layout_rules(""),
            mesh_shape=mtf.Shape([]),
        )

    mesh, implementation = mesh_of(mtf)
    batch, batch_dim = features(), mtf.Dimension("batch", BATCH)
    inputs, targets = (
        mtf.import_tf_tensor(mesh, tf.constant(batch[name]), mtf.Shape([batch_dim, mtf.Dimension("length", length)]))
        for name, length in (("encoder_input_tokens", INPUTS), ("decoder_target_tokens", TARGETS))
    )
    model = transformer.Bitransformer(half(False), half(True), shared_embedding=True)
    tf.train.get_or_create_global_step()
    _, loss = model.call_simple(inputs, targets, compute_loss=True, num_microbatches=1)
    variables = mesh.graph.trainable_variables
    gradients = mtf.gradients([loss], [variable.outputs[0] for variable in variables])
    updates = optimize.AdafactorOptimizer(learning_rate=1e-3).apply_grads(gradients, variables)
    lowering = mtf.Lowering(mesh.graph, {mesh: implementation})
    update = tf.group(*(lowering.lowered_operation(operation) for operation in updates))
    value = lowering.export_to_tf_tensor(loss)
    running = session()
    running.run(tf.global_variables_initializer())
    running.run(lowering.copy_masters_to_slices())
    return lambda: running.run([value, update])[0]
