"""The pure step: it learns, does not depend on variables, and accumulates microbatches."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.schedules import Constant
from switch_tf.training.step import _InSequence, make_evaluation_step, make_train_step, microbatch
from tests.support.features import random_features


def prepare(config, num_microbatches=1, rate=0.02, balance_loss=1e-2):
    model = EncoderDecoder(config)
    model.build()
    optimizer = Adafactor(learning_rate=Constant(rate))
    pure_step = make_train_step(model, optimizer, Objective(balance_loss=balance_loss), num_microbatches)
    step = tf.function(pure_step, autograph=False)
    weights = [tf.identity(weight.value) for weight in model.trainable_variables]
    slots = [
        {name: tf.zeros(slot.shape) for name, slot in optimizer.slot_shapes(tuple(w.shape), w.axes).items()}
        for w in model.trainable_variables
    ]
    return model, step, weights, slots


def features(**settings) -> dict:
    return {name: tf.constant(value) for name, value in random_features(**settings).items()}


def test_loss_falls_and_no_variable_changes(tiny_config):
    model, step, weights, slots = prepare(tiny_config)
    before = [weight.numpy() for weight in model.trainable_variables]
    batch, losses = features(), []
    for index in range(30):
        weights, slots, metrics = step(weights, slots, tf.constant(index, tf.int64), batch, tf.constant(0))
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.5 * losses[0]
    for old, weight in zip(before, model.trainable_variables):
        np.testing.assert_array_equal(old, weight)


def test_the_step_is_deterministic_and_its_seed_and_number_matter(tiny_config):
    _, step, weights, slots = prepare(dataclasses.replace(tiny_config, dropout_rate=0.2))
    batch = features()
    loss = lambda index, seed: float(  # noqa: E731
        step(weights, slots, tf.constant(index, tf.int64), batch, tf.constant(seed))[2].loss
    )
    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(1, 0), loss(0, 1)}) == 3


@pytest.mark.parametrize("num_microbatches", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_microbatches_give_the_gradient_of_the_batch(tiny_config, num_microbatches):
    """With groups of one example's tokens and no noise, microbatches change results only by rounding."""
    config = dataclasses.replace(tiny_config, group_size=8, router_jitter=0.0, num_encoder_layers=1)
    batch = features(batch=8)
    results = []
    for parts in (1, num_microbatches):
        _, step, weights, slots = prepare(config, parts, rate=1e-3, balance_loss=0.0)
        results.append(step(weights, slots, tf.constant(0, tf.int64), batch, tf.constant(0)))
    (at_once, _, one), (in_turn, _, many) = results
    for name in ("loss", "neg_log_perplexity", "accuracy", "z_loss", "gradient_norm", "target_tokens"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-4, err_msg=name)
    # The first Adafactor update is the normalized gradient, whose rounding matters where the gradient is tiny.
    close = [np.mean(np.isclose(a, b, atol=2e-6)) for a, b in zip(at_once, in_turn)]
    assert min(close) > 0.99


def test_balance_loss_of_microbatches_is_their_mean(tiny_config):
    config = dataclasses.replace(tiny_config, router_jitter=0.0)
    _, step, weights, slots = prepare(config, 4)
    _, step_of_one, _, _ = prepare(config)
    start, seed, batch = tf.constant(0, tf.int64), tf.constant(0), features(batch=8)
    metrics = step(weights, slots, start, batch, seed)[2]
    alone = [
        step_of_one(weights, slots, start, {name: feature[index::4] for name, feature in batch.items()}, seed)[2]
        for index in range(4)
    ]
    np.testing.assert_allclose(metrics.balance_loss, np.mean([each.balance_loss for each in alone]), rtol=1e-5)
    for routing in metrics.routing.values():
        np.testing.assert_allclose(tf.reduce_sum(routing.expert_load), 1.0, rtol=1e-5)


def test_microbatches_take_every_nth_example():
    rows = {"tokens": tf.reshape(tf.range(12), [6, 2])}
    np.testing.assert_array_equal(microbatch(rows, tf.constant(1), 3)["tokens"], [[2, 3], [8, 9]])


def test_graph_does_not_grow_with_the_number_of_microbatches(tiny_config):
    sizes = []
    for parts in (2, 8):
        _, step, weights, slots = prepare(tiny_config, parts)
        arguments = (weights, slots, tf.constant(0, tf.int64), features(batch=4 * parts), tf.constant(0))
        graph = step.get_concrete_function(*arguments).graph
        sizes.append(len(graph.get_operations()))
    assert sizes[0] == sizes[1]


def test_bfloat16_step_keeps_float32_weights_and_learns(tiny_config):
    _, step, weights, slots = prepare(dataclasses.replace(tiny_config, activation_dtype="bfloat16"))
    batch, losses = features(), []
    for index in range(20):
        weights, slots, metrics = step(weights, slots, tf.constant(index, tf.int64), batch, tf.constant(0))
        losses.append(float(metrics.loss))
    assert {weight.dtype for weight in weights} == {tf.float32}
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_an_update_that_is_not_finite_is_not_made(tiny_config, num_microbatches):
    """One example has a token whose embedding is infinite: the first microbatch is bad, the second one is fine."""
    small = {"num_encoder_layers": 1, "num_decoder_layers": 1, "sparse_every": 1, "tied_logits": False}
    _, step, weights, slots = prepare(dataclasses.replace(tiny_config, **small), num_microbatches)

    def update(index: int, weights: list, slots: list) -> tuple:
        return step(weights, slots, tf.constant(index, tf.int64), batch, tf.constant(0))

    token = 1  # Random features have none.
    batch = features()
    batch["encoder_input_tokens"] = tf.tensor_scatter_nd_update(batch["encoder_input_tokens"], [[0, 0]], [token])
    weights, slots, metrics = update(0, weights, slots)
    assert metrics.skipped == 0 and np.isfinite(metrics.loss)
    (table,) = [index for index, weight in enumerate(weights) if weight.shape[0] == tiny_config.vocab_size]
    bad = [*weights]
    bad[table] = tf.tensor_scatter_nd_update(bad[table], [[token]], tf.fill([1, tiny_config.d_model], np.inf))
    kept, kept_slots, metrics = update(1, bad, slots)
    assert metrics.skipped == 1 and not np.isfinite(metrics.gradient_norm)
    for before, after in zip(tf.nest.flatten([bad, slots]), tf.nest.flatten([kept, kept_slots])):
        assert before.numpy().tobytes() == after.numpy().tobytes()
    moved, _, metrics = update(2, weights, kept_slots)
    assert metrics.skipped == 0 and any(np.any(before != after) for before, after in zip(weights, moved))


@pytest.mark.parametrize("by_matrix", [False, True])
def test_a_matrix_keeps_its_values_by_itself(tiny_config, by_matrix):
    """With `skip_by_matrix`, the infinite gradient of one expert keeps its weights and slots, and no others."""
    model, _, weights, slots = prepare(tiny_config)
    bad = next(index for index, weight in enumerate(model.trainable_variables) if weight.path.endswith("experts/wi"))

    @tf.custom_gradient
    def with_infinite_gradient(tensor: tf.Tensor) -> tuple:
        expert = tf.reshape(tf.range(tensor.shape[0]), [-1, 1, 1])
        return tf.identity(tensor), lambda gradient: tf.where(expert == 0, np.inf, gradient)

    call = model.stateless_call

    def stateless_call(values: list, *arguments: object, **settings: object) -> object:
        values = [with_infinite_gradient(value) if index == bad else value for index, value in enumerate(values)]
        return call(values, *arguments, **settings)

    model.stateless_call = stateless_call
    step = make_train_step(model, Adafactor(learning_rate=Constant(0.02), skip_by_matrix=by_matrix), Objective())
    after, slots_after, metrics = step(weights, slots, tf.constant(1, tf.int64), features(), tf.constant(0))
    assert metrics.skipped == 1 and np.isfinite(metrics.loss)

    def is_kept(index: int, part: object) -> bool:
        before, now = [weights[index], *slots[index].values()], [after[index], *slots_after[index].values()]
        return all(old.numpy()[part].tobytes() == new.numpy()[part].tobytes() for old, new in zip(before, now))

    assert is_kept(bad, 0) and all(np.all(np.isfinite(value)) for value in tf.nest.flatten([after, slots_after]))
    others = [is_kept(index, ...) for index in range(len(weights)) if index != bad]
    assert [is_kept(bad, 1), *others] == [not by_matrix] * len(weights)


@pytest.mark.parametrize("by_matrix", [False, True])
def test_large_weights_are_updated_one_after_the_other_as_their_gradients_come(tiny_config, by_matrix, monkeypatch):
    """The last weight's gradient comes first; with `skip_by_matrix` its update waits for none of the others."""
    monkeypatch.setattr(_InSequence, "_LARGE", 0)
    model, _, weights, slots = prepare(tiny_config)
    step = make_train_step(model, Adafactor(learning_rate=Constant(0.02), skip_by_matrix=by_matrix), Objective())
    arguments = weights, slots, tf.constant(1, tf.int64), features(), tf.constant(0)
    after = tf.function(step, autograph=False).get_concrete_function(*arguments).structured_outputs[0]

    def needed(tensor: tf.Tensor) -> set[str]:
        """The names of the operations that run before a tensor is there."""
        found, queue = set(), [tensor.op]
        while queue:
            operation = queue.pop()
            if operation.name not in found:
                found.add(operation.name)
                queue += [*operation.control_inputs, *(each.op for each in operation.inputs)]
        return found

    before = [needed(value.op.inputs[0]) for value in after]
    assert all(len(later) < len(sooner) for sooner, later in itertools.pairwise(before))
    sums_of_gradients = [sum("L2Loss" in name for name in names) for names in before]
    assert sums_of_gradients[-1] == (0 if by_matrix else len(weights))


def test_evaluation_counts_real_tokens_without_noise(tiny_config):
    model, _, weights, _ = prepare(dataclasses.replace(tiny_config, dropout_rate=0.5))
    batch = features()
    evaluate = make_evaluation_step(model)
    first, again = evaluate(weights, batch), evaluate(weights, batch)
    assert float(first.tokens.tokens) == np.sum(batch["decoder_target_tokens"].numpy() != 0)
    np.testing.assert_array_equal(first.tokens.negative_log_likelihood, again.tokens.negative_log_likelihood)
    assert set(first.routing) == {"encoder/layer_1", "decoder/layer_1"}
