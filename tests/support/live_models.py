"""Hugging Face's models that the live tests compare with; torch is handed in."""

# The kinds of models, as `random_model` takes them; the untied Switch Transformer has no scaling of the logits.
KINDS = {
    "switch": ("switch_transformers", {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 2}),
    "t5_1_0": ("t5", {}),
    "t5_1_1": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", {}),
}
# No two sizes alike, heads that do not add up to d_model, stacks of different depth, T5's own buckets.
ODD = {
    "vocab_size": 50,
    "d_model": 20,
    "d_ff": 36,
    "d_kv": 8,
    "num_heads": 3,
    "num_layers": 4,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}


def random_switch(references, **settings):
    return references.random_model("switch_transformers", **{**references.SPARSE, **settings})


def assert_same_weights(torch, ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
