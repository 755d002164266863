"""Hugging Face's Switch Transformer in PyTorch: a sparse layer, a training step with its Adafactor, and generation."""

import functools
import os
from collections.abc import Callable

import numpy as np

from benchmarks.peer_sizes import GENERATIONS, INPUTS, TARGETS, THREADS, Layer, features, on_first_call


def config_of(num_experts: int):
    """The config of the benchmark's model; 0 experts: the dense T5."""
    import transformers

    shape = {
        "vocab_size": 4096,
        "d_model": 256,
        "d_kv": 32,
        "d_ff": 1024,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_heads": 8,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }
    if not num_experts:
        return transformers.T5Config(**shape, feed_forward_proj="relu")
    # Their capacity masks tokens and does not change the work: with as many slots as tokens, nothing is dropped.
    return transformers.SwitchTransformersConfig(
        **shape,
        num_experts=num_experts,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        expert_capacity=INPUTS,
        output_router_logits=True,
    )


def layer(sizes: Layer, training: bool = True) -> tuple[Callable, Callable]:
    """Builds a sparse layer of the sizes' weights on their inputs.

    Args:
      sizes: of the layer.
      training: whether the router's input is jittered.

    Returns:
      (a function that returns the output [G, S, M], one that computes the gradients of the inputs and all weights)
    """
    import torch
    import transformers
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    torch.set_num_threads(THREADS)
    config = transformers.SwitchTransformersConfig(
        d_model=sizes.d_model,
        d_ff=sizes.d_ff,
        num_experts=sizes.num_experts,
        expert_capacity=sizes.capacity,
        dropout_rate=0.0,
        router_jitter_noise=0.01 if training else 0.0,
    )
    sparse = SwitchTransformersSparseMLP(config).train(training)
    weights = {name: torch.from_numpy(array) for name, array in sizes.weights().items()}
    with torch.no_grad():
        sparse.router.classifier.weight.copy_(weights["router"].T)
        for index in range(sizes.num_experts):
            expert = sparse.experts[f"expert_{index}"]
            expert.wi.weight.copy_(weights["wi"][index].T)
            expert.wo.weight.copy_(weights["wo"][index].T)
    x = torch.from_numpy(sizes.inputs()).requires_grad_()

    def output():
        with torch.no_grad():
            return sparse(x).numpy()

    def backward():
        sparse.zero_grad()
        x.grad = None
        # Their jitter multiplies what it is given in place, which must not be the leaf.
        sparse(x.clone()).square().sum().backward()

    return output, backward


def functions(num_experts: int, folder: str, dtype: str) -> dict[str, Callable]:
    """Layer, step and generation (the step alone in bfloat16) without arguments; saves the model's weights for ours."""
    import torch
    import transformers
    from transformers.optimization import Adafactor

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    kind = "SwitchTransformersForConditionalGeneration" if num_experts else "T5ForConditionalGeneration"
    model = getattr(transformers, kind)(config_of(num_experts))
    np.savez(os.path.join(folder, "weights.npz"), **{name: t.numpy() for name, t in model.state_dict().items()})
    optimizer = Adafactor(model.parameters(), lr=1e-3, scale_parameter=True, relative_step=False)
    batch = {name: torch.from_numpy(value.astype(np.int64)) for name, value in features().items()}
    inputs = batch["encoder_input_tokens"]

    def step():
        model.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=inputs, labels=batch["decoder_target_tokens"]).loss
        loss.backward()
        optimizer.step()

    def generate(rows: int, num_beams: int):
        model.eval()
        length = {"max_new_tokens": TARGETS, "min_new_tokens": TARGETS}
        with torch.no_grad():
            model.generate(input_ids=inputs[:rows], do_sample=False, num_beams=num_beams, **length)

    layers = {"layer": on_first_call(lambda: layer(Layer(num_experts))[1])} if num_experts else {}
    generations = {name: functools.partial(generate, *sizes) for name, sizes in GENERATIONS.items()}
    return {"step": step} | (generations | layers if dtype == "float32" else {})
