"""Switch self-attention against dense attention with the weights of each token's expert."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.layers.moe import SwitchFeedForward
from switch_tf.layers.switch_attention import AttentionExperts, SwitchSelfAttention
from switch_tf.layers.token_choice import SwitchRouter


def layer(kind: str, capacity_factor: float = 4.0, **settings) -> SwitchSelfAttention:
    shape = {"d_model": 16, "num_experts": 4}
    experts = AttentionExperts(
        **shape, num_heads=2, d_kv=8, kind=kind, d_ff=32, initializer_scale=1.0, name="experts", **settings
    )
    projections = SwitchFeedForward(
        router=SwitchRouter(**shape, name="router"),
        experts=experts,
        eval_capacity_factor=capacity_factor,
        min_expert_capacity=1,
        name="projections",
    )
    built = SwitchSelfAttention(projections=projections, d_model=16, num_heads=2, d_kv=8, name="attention")
    built.build()
    return built


@pytest.mark.parametrize("kind", ["linear", "feed_forward"])
def test_projections_are_those_of_each_tokens_expert_times_its_gate(kind):
    built = layer(kind)
    x = tf.random.stateless_normal([2, 6, 16], (0, 1))
    query, key_values, routing = built.project_self(x)
    np.testing.assert_array_equal(key_values.keys, key_values.values)
    experts = built.projections.experts
    flat = x.numpy().reshape(12, 16)
    for token in range(12):
        expert, gate = int(routing.expert[0, token, 0]), float(routing.gate[0, token, 0])
        hidden = flat[token]
        if kind == "feed_forward":
            hidden = np.maximum(hidden @ experts.wi.numpy()[expert], 0)
        for ours, kernel in ((query, experts.query), (key_values.keys, experts.key_value)):
            expected = (gate * hidden @ kernel.numpy()[expert]).reshape(2, 8)
            np.testing.assert_allclose(ours[token // 6, :, token % 6], expected, atol=1e-5)


def test_one_linear_expert_is_dense_attention_with_shared_keys_and_values():
    shape = {"d_model": 16, "num_experts": 1}
    experts = AttentionExperts(**shape, num_heads=2, d_kv=8, name="experts")
    projections = SwitchFeedForward(router=SwitchRouter(**shape, name="router"), experts=experts, name="projections")
    built = SwitchSelfAttention(projections=projections, d_model=16, num_heads=2, d_kv=8, name="attention")
    built.build()
    x = tf.random.stateless_normal([2, 6, 16], (0, 1))
    query, key_values, _ = built.project_self(x)
    kernel = tf.reshape(experts.query[0], [16, 2, 8])
    np.testing.assert_allclose(query, tf.einsum("blm,mnk->bnlk", x, kernel), rtol=1e-4, atol=1e-6)
    weights = tf.nn.softmax(tf.einsum("bnqk,bnsk->bnqs", query, key_values.keys))
    heads = tf.einsum("bnqs,bnsk->bqnk", weights, key_values.values)
    expected = tf.einsum("bqnk,nkm->bqm", heads, built.out.value)
    np.testing.assert_allclose(built.attend(query, key_values), expected, atol=1e-5)


def test_a_token_without_a_slot_has_a_query_and_key_of_zero():
    built = layer("linear", capacity_factor=0.25)
    query, key_values, routing = built.project_self(tf.random.stateless_normal([2, 8, 16], (0, 1)))
    dropped = (routing.gate[..., 0] == 0).numpy().reshape(2, 8)
    assert dropped.any() and not dropped.all()
    by_token = lambda heads: heads.numpy().transpose(0, 2, 1, 3)  # noqa: E731
    assert not np.any(by_token(query)[dropped]) and not np.any(by_token(key_values.keys)[dropped])
    assert np.all(np.any(by_token(query)[~dropped], axis=(-1, -2)))
