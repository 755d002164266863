"""Every router against the gate that `gates.py` derives from the formulas, and the noise of exploration."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers.context import ForwardContext
from switch_tf.layers.dispatch import DISPATCHERS
from switch_tf.layers.router_base import ROUTERS, Router, Scores, register_router
from switch_tf.layers.routing import Routing, expert_capacity
from tests.support import gates

D_MODEL = 8
TRAINING = ForwardContext(training=True)


def router(name: str, experts: int, d_model: int = D_MODEL, **settings):
    made = ROUTERS[name](d_model=d_model, num_experts=experts, name="router", **settings)
    made.build()
    return made


def random_scores(experts: int, groups: int = 3, size: int = 24, seed: int = 0) -> Scores:
    logits = np.random.default_rng(seed).normal(size=[groups, size, experts]) * 2
    probabilities = tf.constant(gates.softmax(logits), tf.float32)
    return Scores(tf.constant(logits, tf.float32), probabilities, probabilities)


def random_mask(padded: bool, groups: int = 3, size: int = 24) -> np.ndarray:
    mask = np.ones([groups, size], np.float32)
    if padded:
        mask[0, size // 2 :] = mask[1, :3] = mask[2] = 0
    return mask


def combine_tensor(routing: Routing, experts: int, dispatcher: str = "einsum") -> np.ndarray:
    """[G, S, E, C]: the combine tensor of a dispatcher, read from the result of combining one-hot slots."""
    groups, size, _ = routing.gate.shape
    capacity = routing.capacity
    names = np.eye(experts * capacity, dtype=np.float32).reshape(experts, 1, capacity, experts * capacity)
    names = tf.constant(np.tile(names, [1, groups, 1, 1]))
    return DISPATCHERS[dispatcher](routing).combine(names).numpy().reshape(groups, size, experts, capacity)


CASES = {
    "switch": ("switch", {}, lambda p, z, m, c: gates.switch(p, m, c)),
    "switch by gate": ("switch", {"priority": "gate"}, lambda p, z, m, c: gates.switch(p, m, c, by_gate=True)),
    "no_token_left_behind": (
        "no_token_left_behind",
        {},
        lambda p, z, m, c: gates.no_token_left_behind(p, m, c, 4),
    ),
    "expert_choice": ("expert_choice", {}, lambda p, z, m, c: gates.expert_choice(p, m, c)),
    "expert_selection": ("expert_selection", {}, lambda p, z, m, c: gates.expert_selection(z, m, c)),
}
for policy in ("all", "none", "threshold"):
    for n, by_gate in ((2, False), (2, True), (3, False)):
        settings = {
            "num_choices": n,
            "eval_later_choice_policy": policy,
            "later_choice_threshold": 0.3,
            "priority": "gate" if by_gate else "position",
        }
        gate = functools.partial(gates.top_n, n=n, policy=policy, threshold=0.3, by_gate=by_gate)
        CASES[f"top_{n} {policy}{' by gate' if by_gate else ''}"] = (
            "top_n",
            settings,
            lambda p, z, m, c, gate=gate: gate(p, m, c),
        )


def cases_and_experts() -> list[tuple[str, int]]:
    """Every case with 1 to 128 experts, except those with more choices than experts, which are errors."""
    return [
        (case, experts)
        for case, (_, settings, _) in CASES.items()
        for experts in (1, 2, 5, 64, 128)
        if settings.get("num_choices", 1) <= experts
    ]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("case", "experts"), cases_and_experts())
def test_combine_tensors_equal_the_derivation(case, experts, padded):
    name, settings, derivation = CASES[case]
    scores, mask = random_scores(experts), random_mask(padded)
    for capacity in {expert_capacity(24, experts, 1.0, 2), 24}:
        routing = router(name, experts, **settings).assign(scores, tf.constant(mask), capacity)
        p, z = scores.probabilities.numpy(), scores.logits.numpy()
        expected = np.stack([derivation(p[g], z[g], mask[g], capacity) for g in range(3)])
        np.testing.assert_allclose(combine_tensor(routing, experts), expected, atol=1e-6)
        np.testing.assert_allclose(combine_tensor(routing, experts, "gather"), expected, atol=1e-6)
        np.testing.assert_array_equal(routing.filled, (expected > 0).sum((1, 3)))
        has_slot = (expected > 0).any((2, 3))
        dropped = 1 - has_slot.sum() / mask.sum()
        assert float(routing.metrics.fraction_dropped) == pytest.approx(dropped, abs=1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("experts", [2, 5, 128])
@pytest.mark.parametrize("name", ROUTERS)
def test_losses_equal_the_formulas(name, experts, padded):
    scores, mask = random_scores(experts), random_mask(padded)
    routing = router(name, experts).assign(scores, tf.constant(mask), 2)
    loss = {
        "expert_choice": lambda g: 1.0,
        "expert_selection": lambda g: gates.expert_selection_loss(scores.logits.numpy()[g], mask[g]),
    }.get(name, lambda g: gates.balance_loss(scores.probabilities.numpy()[g], mask[g]))
    expected = np.mean([loss(g) for g in range(3) if mask[g].any()])
    assert float(routing.balance_loss) == pytest.approx(expected, rel=1e-5)
    assert float(routing.z_loss) == pytest.approx(gates.z_loss(scores.logits.numpy(), mask), rel=1e-5)


@pytest.mark.parametrize("name", ROUTERS)
def test_the_routers_weights_learn_from_gates_and_losses(name):
    tokens = tf.random.stateless_normal([2, 16, D_MODEL], (0, 1))
    made = router(name, 4)
    with tf.GradientTape(persistent=True) as tape:
        routing = made(tokens, tf.ones([2, 16]), capacity=4, context=TRAINING)
        gate, z_loss = tf.reduce_sum(routing.gate**2), routing.z_loss
        balance = routing.balance_loss
    assert np.any(tape.gradient(gate, made.kernel.value) != 0)
    assert np.any(tape.gradient(z_loss, made.kernel.value) != 0)
    by_balance = tape.gradient(balance, made.kernel.value)
    assert by_balance is None if name == "expert_choice" else np.any(by_balance != 0)


def test_figure_11_leaves_no_token_behind():
    probabilities = np.array(
        [[0.1, 0.7, 0.2], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.3, 0.1, 0.6], [0.7, 0.1, 0.2]]
    )
    logits = tf.constant(np.log(probabilities)[np.newaxis], tf.float32)
    scores = Scores(logits, tf.nn.softmax(logits), tf.nn.softmax(logits))
    mask = tf.ones([1, 6])
    assert float(router("switch", 3).assign(scores, mask, 2).metrics.fraction_dropped) == pytest.approx(2 / 6)
    routing = router("no_token_left_behind", 3).assign(scores, mask, 2)
    assert float(routing.metrics.fraction_dropped) == pytest.approx(0, abs=1e-6)
    # By position: tokens 2 and 3 get expert 1; 4 gets a slot of its second choice, 6 of its first.
    np.testing.assert_array_equal(routing.expert[0, :, 0], [1, 0, 0, 1, 2, 2])


def took_first_choice(routing: Routing) -> np.ndarray:
    """Which tokens got a slot of their first choice: bool [G, S]."""
    best = tf.argmax(routing.logits, axis=-1, output_type=tf.int32)
    return ((routing.gate[..., 0] > 0) & (routing.expert[..., 0] == best)).numpy()


def test_a_decoders_routers_ignore_later_tokens():
    tokens = tf.random.stateless_normal([1, 16, D_MODEL], (0, 1))
    changed = tf.concat([tokens[:, :8], -3.0 * tokens[:, 8:]], axis=1)
    for name in ROUTERS:
        for settings in ({}, {"priority": "gate"}) if ROUTERS[name].tokens_choose_experts else ({},):
            made = router(name, 4, **settings)
            first, second = (made(x, tf.ones([1, 16]), capacity=2) for x in (tokens, changed))
            # Further choices come after all first choices, including those of later tokens: see the next test.
            same = np.array_equal(first.gate[:, :8], second.gate[:, :8])
            if name in ("top_n", "no_token_left_behind"):
                same = np.array_equal(took_first_choice(first)[:, :8], took_first_choice(second)[:, :8])
            assert same == made.is_causal, (name, settings)


@pytest.mark.parametrize(("name", "settings"), [("top_n", {"eval_later_choice_policy": "all"}), ("switch", {})])
def test_a_later_tokens_first_choice_goes_before_an_earlier_tokens_second(name, settings):
    """The leak of future tokens that decoders of GShard and Mesh TensorFlow have too, and top-1 has not."""
    logits = np.log([[[0.6, 0.4], [0.7, 0.3], [0.9, 0.1]], [[0.6, 0.4], [0.7, 0.3], [0.1, 0.9]]]).astype(np.float32)
    probabilities = tf.nn.softmax(logits)
    routing = router(name, 2, **settings).assign(Scores(logits, probabilities, probabilities), tf.ones([2, 3]), 1)
    gates_before_the_last = routing.gate[:, :2]
    assert np.array_equal(*gates_before_the_last) == (name == "switch")


@pytest.mark.parametrize("policy", ["sample", "input_dropout", "input_jitter"])
def test_noise_follows_its_seed(policy):
    tokens = tf.random.stateless_normal([2, 16, D_MODEL], (0, 1))
    made = router("switch", 4, policy=policy, jitter=0.1)
    first, again, other = (
        made.scores(tokens, ForwardContext(training=True, seed=seed)).preference for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    calm = made.scores(tokens).preference
    np.testing.assert_array_equal(calm, made.scores(tokens, ForwardContext(seed=1)).preference)
    assert not np.allclose(calm, first)


def test_argmax_makes_no_noise():
    tokens = tf.random.stateless_normal([2, 16, D_MODEL], (0, 1))
    made = router("switch", 4, policy="argmax")
    np.testing.assert_array_equal(
        made.scores(tokens, TRAINING).logits, made.scores(tokens, ForwardContext(seed=1)).logits
    )


def inputs_seen_by_the_router(size: int, **settings) -> np.ndarray:
    """The router's noisy input for tokens of ones: its logits with an identity kernel."""
    made = router("switch", 64, d_model=64, **settings)
    made.kernel.assign(np.eye(64, dtype=np.float32))
    return made.scores(tf.ones([4, size, 64]), ForwardContext(training=True, seed=3)).logits.numpy()


def test_jitter_is_uniform_in_one_plus_minus_epsilon():
    factors = inputs_seen_by_the_router(1024, jitter=0.25).ravel()
    assert factors.min() >= 0.75 and factors.max() <= 1.25
    # Kolmogorov-Smirnov with 262,144 draws: 1.95 / sqrt(n) has a p-value of 0.001.
    ordered = np.sort((factors - 0.75) / 0.5)
    distance = np.abs(ordered - np.arange(1, len(ordered) + 1) / len(ordered)).max()
    assert distance < 1.95 / len(ordered) ** 0.5


def test_input_dropout_drops_its_share_and_keeps_the_mean():
    factors = inputs_seen_by_the_router(1024, policy="input_dropout", input_dropout_rate=0.1).ravel()
    assert np.allclose(np.unique(factors), [0, 1 / 0.9])
    assert np.mean(factors == 0) == pytest.approx(0.1, abs=4 * (0.09 / len(factors)) ** 0.5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampling_draws_from_the_softmax_and_gates_with_its_probability(temperature):
    logits = np.log([0.5, 0.3, 0.15, 0.05]).astype(np.float32)
    made = router("switch", 4, d_model=4, policy="sample", temperature=temperature)
    made.kernel.assign(np.diag(logits))
    routing = made(
        tf.ones([8, 2048, 4]), tf.ones([8, 2048]), capacity=2048, context=ForwardContext(training=True, seed=7)
    )
    expert = routing.expert.numpy().ravel()
    expected = gates.softmax(logits / temperature)
    observed = np.bincount(expert, minlength=4) / expert.size
    np.testing.assert_allclose(observed, expected, atol=4 * (0.25 / expert.size) ** 0.5)
    np.testing.assert_allclose(routing.gate.numpy().ravel(), gates.softmax(logits)[expert], rtol=1e-5)


def test_the_eval_policy_may_sample():
    tokens = tf.zeros([1, 512, D_MODEL])
    sampled = router("switch", 4, eval_policy="sample")(tokens, tf.ones([1, 512]), capacity=512)
    assert len(np.unique(sampled.expert)) == 4


def test_random_later_choices_are_used_in_proportion_to_their_gate():
    probabilities = np.full([4, 4096, 4], 0.01, np.float32)
    probabilities[..., 0], probabilities[..., 1] = 0.9, 0.08
    logits = tf.math.log(probabilities)
    scores = Scores(logits, tf.constant(probabilities), tf.constant(probabilities))
    made = router("top_n", 4, later_choice_threshold=0.2)
    mask = tf.ones([4, 4096])
    used = made.assign(scores, mask, 4096, ForwardContext(training=True, seed=1)).gate[..., 1] > 0
    expected = (0.08 / 0.98) / 0.2
    assert np.mean(used) == pytest.approx(expected, abs=4 * (0.25 / used.shape.num_elements()) ** 0.5)
    again = made.assign(scores, mask, 4096, ForwardContext(training=True, seed=1)).gate[..., 1] > 0
    np.testing.assert_array_equal(used, again)
    assert not np.array_equal(
        used, made.assign(scores, mask, 4096, ForwardContext(training=True, seed=2)).gate[..., 1] > 0
    )


def test_the_load_of_top_n_counts_all_choices():
    scores = random_scores(4)
    made = router("top_n", 4, eval_later_choice_policy="all")
    load = made.assign(scores, tf.ones([3, 24]), 2).metrics.expert_load
    best = np.argsort(-scores.probabilities.numpy(), axis=-1)[..., :2].ravel()
    np.testing.assert_allclose(load, np.bincount(best, minlength=4) / best.size, rtol=1e-6)


def test_a_balance_bias_decides_and_does_not_weigh():
    made = router("switch", 4, balance_bias=True)
    made.bias.assign([0.0, 0.0, 5.0, 0.0])
    tokens = tf.random.stateless_normal([1, 16, D_MODEL], (0, 1))
    with tf.GradientTape() as tape:
        routing = made(tokens, tf.ones([1, 16]), capacity=16)
        loss = tf.reduce_sum(routing.gate)
    np.testing.assert_array_equal(routing.expert, np.full([1, 16, 1], 2))
    np.testing.assert_allclose(routing.gate[..., 0], tf.nn.softmax(routing.logits)[..., 2], rtol=1e-6)
    assert tape.gradient(loss, made.bias.value) is None


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("switch", {"policy": "softmax"}, "router_policy = 'softmax' is unknown; choose one of"),
        ("switch", {"eval_policy": "best"}, "router_eval_policy = 'best' is unknown"),
        ("switch", {"priority": "random"}, "priority = 'random' is unknown"),
        ("switch", {"policy": "sample", "balance_bias": True}, "ignores the balance bias: set another policy"),
        ("top_n", {"experts": 1}, "sends a token to 2 experts and NUM_EXPERTS = 1"),
        ("top_n", {"num_choices": 1}, "num_choices = 1 of router = 'top_n' must be at least 2"),
        ("top_n", {"later_choice_policy": "some"}, "later_choice_policy = 'some' is unknown"),
        ("top_n", {"later_choice_threshold": 0.0}, "must be positive"),
        ("no_token_left_behind", {"num_choices": 0}, "at least 1"),
        ("expert_choice", {"policy": "sample"}, "take neither router_policy = 'sample'"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(name, settings, sentence):
    with pytest.raises(SettingError, match=sentence):
        router(name, **{"experts": 4} | settings)


def test_a_router_names_its_own_settings():
    assert Router.own_settings() == ROUTERS["expert_choice"].own_settings() == {}
    assert ROUTERS["switch"].own_settings() == {"priority": str}
    assert list(ROUTERS["top_n"].own_settings()) == [
        "eval_later_choice_policy",
        "later_choice_policy",
        "later_choice_threshold",
        "num_choices",
        "priority",
    ]


def test_a_name_has_one_router():
    with pytest.raises(ValueError, match="The router 'switch' is SwitchRouter of switch_tf"):
        register_router("switch")(type("AnotherRouter", (Router,), {}))
    assert register_router("switch")(ROUTERS["switch"]) is ROUTERS["switch"]
