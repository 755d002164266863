"""Runs Hugging Face's models: the references of the live tests and of the golden files. Needs torch."""

import numpy as np
import torch
import transformers

from switch_tf.interop.huggingface import config_from_huggingface
from tests.support.parity import Reference, shifted

TINY = {
    "vocab_size": 48,
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 8,
    "num_heads": 2,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
SPARSE = {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}

# The cases of the golden files: (model type, settings besides TINY, paddings).
CASES = {
    "switch_8": ("switch_transformers", {**SPARSE, "num_experts": 8, "expert_capacity": 64}, "right left both"),
    "switch_8_dropping": ("switch_transformers", {**SPARSE, "num_experts": 8, "expert_capacity": 2}, "right"),
    "switch_16": ("switch_transformers", {**SPARSE, "num_experts": 16, "expert_capacity": 64}, "right left both"),
    "switch_16_dropping": ("switch_transformers", {**SPARSE, "num_experts": 16, "expert_capacity": 1}, "right"),
    "t5_1_0": ("t5", {"feed_forward_proj": "relu"}, "right left both"),
    "t5_1_1": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, "right left both"),
    "mt5": ("mt5", {}, "right left both"),
}


def random_model(model_type: str, seed: int = 0, untie: bool = True, **settings):
    """A Hugging Face model with random weights: norms too, and a head of its own where the released models have one."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **{**TINY, **settings})
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    scaled = model_type == "switch_transformers" or (model_type == "t5" and config.scale_decoder_outputs)
    with torch.no_grad():
        if untie and not scaled:
            model.all_tied_weights_keys.pop("lm_head.weight")
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) * config.d_model**-0.5)
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
            elif "relative_attention_bias" in name:
                parameter.normal_()
            parameter.copy_(parameter.bfloat16())  # Rounded: half as much in a golden file.
    return model.eval()


def random_batch(
    paddings: str = "", inputs: int = 20, targets: int = 12, vocab_size: int = 48, seed: int = 0
) -> dict[str, np.ndarray]:
    """A row of text for each word of `paddings` that is padded there ("right", "left", "both"), and one without."""
    random = np.random.default_rng(seed)
    rows = ["none", *paddings.split()]

    def padded(length: int) -> np.ndarray:
        tokens = random.integers(2, vocab_size, [len(rows), length], dtype=np.int32)
        for row, padding in zip(tokens, rows):
            if padding in ("left", "both"):
                row[: length // 4] = 0
            if padding in ("right", "both"):
                row[-(length // 3) :] = 0
        return tokens

    return {"encoder_input_tokens": padded(inputs), "decoder_target_tokens": padded(targets)}


def reference(model, batch: dict[str, np.ndarray]) -> Reference:
    """Runs a Hugging Face model over a batch: padding is masked everywhere and counts in no loss."""
    is_switch = model.config.model_type == "switch_transformers"
    if is_switch:  # So that the loss is the cross-entropy alone.
        model.router_aux_loss_coef = model.router_z_loss_coef = 0.0
    inputs, targets = (torch.tensor(array).long() for array in batch.values())
    states = []
    hook = model.decoder.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    output = model(
        input_ids=inputs,
        attention_mask=(inputs != 0).long(),
        decoder_input_ids=torch.tensor(shifted(batch["decoder_target_tokens"])).long(),
        decoder_attention_mask=(targets != 0).long(),
        labels=targets.masked_fill(targets == 0, -100),
        **({"output_router_logits": True} if is_switch else {}),
    )
    hook.remove()
    model.zero_grad()
    output.loss.backward()
    outputs = {
        "encoder": output.encoder_last_hidden_state,
        "decoder": states[0],
        "logits": output.logits,
        "loss": output.loss,
    }
    if is_switch:
        router_logits = (*(output.encoder_router_logits or ()), *(output.decoder_router_logits or ()))
        outputs |= zip(config_from_huggingface(model.config).sparse_layer_names, router_logits)
    # Experts that no token came to have no gradient.
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }

    def arrays(tensors: dict) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy() for name, tensor in tensors.items()}

    return Reference(
        config=model.config.to_dict(),
        weights=arrays(dict(model.named_parameters())),
        batch=batch,
        outputs=arrays(outputs),
        gradients=arrays(gradients),
    )


def golden_case(name: str) -> Reference:
    """Runs one of `CASES`."""
    model_type, settings, paddings = CASES[name]
    seed = list(CASES).index(name)
    return reference(random_model(model_type, seed, **settings), random_batch(paddings, seed=seed))
