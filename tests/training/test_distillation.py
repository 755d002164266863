"""The loss of distillation against float64 numpy, and what must hold of a student in one step."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.distillation import (
    TEACHER_LOG_PROBABILITIES,
    TEACHER_OF_TARGETS,
    TEACHER_TOKENS,
    CachedTeacher,
    Distillation,
    ModelTeacher,
    SoftLoss,
    SoftTargets,
    Teacher,
)
from switch_tf.training.losses import Objective, objective
from switch_tf.training.schedules import Constant
from switch_tf.training.step import make_evaluation_step, make_train_step
from tests.support.features import random_features
from tests.support.numpy_distillation import distilled, log_z, softmax

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = (3 * RANDOM.standard_normal([2, 6, 11], np.float32) for _ in range(2))
TARGETS = RANDOM.integers(1, 11, [2, 6], dtype=np.int32)
TARGETS[1, 3:] = 0
FEATURES = {"decoder_target_tokens": tf.constant(TARGETS)}


class FixedTeacher(ModelTeacher):
    """A teacher of given logits, for which everything but the model is that of `ModelTeacher`."""

    def __init__(self, logits: np.ndarray):
        self.model = self
        self._logits = tf.constant(logits)

    trainable_variables = ()

    def stateless_call(self, *arguments, **settings):
        return self._logits, None


def loss_and_gradient(
    teacher: Teacher, features: dict, fraction: float, temperature: float, z_loss: float = 0.0
) -> tuple[tf.Tensor, tf.Tensor, dict]:
    """What `make_train_step` computes from the logits of a student."""
    distillation = Distillation(SoftLoss(fraction, temperature), teacher)
    logits, num_tokens = tf.constant(STUDENT), tf.constant(float((TARGETS != 0).sum()))
    soft = distillation.soft_targets([], features)
    share = distillation.settings.fraction_at(tf.constant(0))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        output = type("Output", (), {"logits": logits, "routings": {}})
        hard, _ = objective(output, features, Objective(z_loss=z_loss), num_tokens, 1.0 - share)
        soft_loss, sums = distillation.loss(logits, features, soft, share, num_tokens)
        loss = hard + soft_loss
    return loss, tape.gradient(loss, logits), {name: value / num_tokens for name, value in sums.items()}


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_loss_and_gradient_are_those_derived_by_hand(fraction, temperature, z_loss):
    loss, gradient, _ = loss_and_gradient(FixedTeacher(TEACHER), FEATURES, fraction, temperature, z_loss)
    expected, expected_gradient = distilled(STUDENT, TEACHER, TARGETS, fraction, temperature, z_loss)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-7)
    assert not np.any(gradient.numpy()[1, 3:])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_metrics_of_the_teacher(temperature):
    _, _, metrics = loss_and_gradient(FixedTeacher(TEACHER), FEATURES, 0.25, temperature)
    real, logits = TARGETS != 0, TEACHER.astype(np.float64)
    soft = softmax(logits / temperature)
    likelihood = np.take_along_axis(logits, TARGETS[..., np.newaxis], -1)[..., 0] - log_z(logits)
    agreement = STUDENT.argmax(-1) == TEACHER.argmax(-1)
    expected = {
        "soft_cross_entropy": distilled(STUDENT, TEACHER, TARGETS, 1.0, temperature)[0] / temperature**2,
        "teacher_entropy": -(soft * np.log(soft)).sum(-1)[real].mean(),
        "teacher_neg_log_perplexity": likelihood[real].mean(),
        "teacher_agreement": agreement[real].mean(),
    }
    assert metrics.keys() == expected.keys() == set(ModelTeacher.scalars)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def cached(num_choices: int, temperature: float) -> dict[str, tf.Tensor]:
    """The features of a batch with the teacher's most probable ids."""
    log_probabilities = np.log(softmax(TEACHER.astype(np.float64) / temperature))
    tokens = np.argsort(-log_probabilities, axis=-1)[..., :num_choices]
    known = np.take_along_axis(log_probabilities, tokens, -1)
    of_targets = np.take_along_axis(np.log(softmax(TEACHER.astype(np.float64))), TARGETS[..., np.newaxis], -1)[..., 0]
    return FEATURES | {
        TEACHER_TOKENS: tf.constant(tokens.reshape(2, -1), tf.int32),
        TEACHER_LOG_PROBABILITIES: tf.constant(known.reshape(2, -1), tf.float32),
        TEACHER_OF_TARGETS: tf.constant(of_targets, tf.float32),
    }


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("num_choices", [1, 4, 11])
def test_a_cached_teacher_lacks_the_cross_entropy_within_the_tail(num_choices, temperature):
    """Worked out in numpy: online loss = cached loss + f T^2 tail CE(teacher within the tail, student within it)."""
    features = cached(num_choices, temperature)
    loss, gradient, metrics = loss_and_gradient(CachedTeacher(num_choices, 11), features, 0.25, temperature)
    online, online_gradient = distilled(STUDENT, TEACHER, TARGETS, 0.25, temperature)
    teacher, student = (softmax(logits.astype(np.float64) / temperature) for logits in (TEACHER, STUDENT))
    in_tail = np.ones_like(teacher)
    np.put_along_axis(in_tail, features[TEACHER_TOKENS].numpy().reshape(2, 6, -1), 0.0, -1)
    real, tail = TARGETS != 0, (teacher * in_tail).sum(-1)
    np.testing.assert_allclose(metrics["teacher_tail"], tail[real].mean(), atol=1e-6)
    if num_choices == 11:
        np.testing.assert_allclose(loss, online, rtol=1e-5)
        np.testing.assert_allclose(gradient, online_gradient, atol=1e-6)
        return
    within = [
        probabilities * in_tail / (probabilities * in_tail).sum(-1, keepdims=True)
        for probabilities in (teacher, student)
    ]
    lacking = -(within[0] * np.log(np.where(in_tail > 0, within[1], 1.0))).sum(-1) * tail
    np.testing.assert_allclose(loss, online - 0.25 * temperature**2 * lacking[real].mean(), rtol=1e-5)
    # Each position's gradient differs in the tail alone, and by no more than the tail's mass.
    difference = np.abs(gradient - online_gradient) * real.sum() / (0.25 * temperature)
    assert np.all(difference * (1 - in_tail) < 1e-5)
    assert np.all(difference.sum(-1) <= 2 * tail * real + 1e-5)


def test_a_student_that_is_certain_has_no_logarithm_of_zero():
    logits = np.full([1, 1, 4], -200.0, np.float32)
    logits[..., 0] = 200.0
    soft = SoftTargets(
        tf.constant([[[0.5, 0.0, 0.0, 0.0]]]), tf.constant([[0.5]]), tf.constant([[[0.0, 1.0, 1.0, 1.0]]]), *[None] * 3
    )
    distillation = Distillation(SoftLoss(), CachedTeacher(1, 4))
    soft = soft._replace(
        best=tf.zeros([1, 1], tf.int32), target_log_probability=tf.zeros([1, 1]), entropy=tf.zeros([1, 1])
    )
    features = {"decoder_target_tokens": tf.constant([[1]])}
    with tf.GradientTape() as tape:
        values = tf.constant(logits)
        tape.watch(values)
        loss, _ = distillation.loss(values, features, soft, tf.constant(0.25), tf.constant(1.0))
    assert np.isfinite(loss) and np.all(np.isfinite(tape.gradient(loss, values)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fraction": 1.5}, "TEACHER_FRACTION = 1.5 must be in"),
        ({"fraction": "0.5"}, "TEACHER_FRACTION = '0.5' must be of the type float"),
        ({"temperature": 0.0}, "TEACHER_TEMPERATURE = 0.0 must be positive"),
        ({"start_step": -1}, "DISTILLATION_START_STEP = -1 must be 0 or more"),
    ],
)
def test_settings_out_of_range(settings, sentence):
    with pytest.raises(SettingError, match=sentence):
        SoftLoss(**settings)


def test_the_teacher_counts_from_its_first_step_on():
    settings = SoftLoss(fraction=0.25, start_step=3)
    assert [float(settings.fraction_at(tf.constant(step, tf.int64))) for step in (0, 2, 3, 4)] == [0, 0, 0.25, 0.25]


# Of whole steps.


def built(config, seed: int) -> EncoderDecoder:
    model = EncoderDecoder(config, seed=seed)
    model.build()
    return model


def values_of(model: EncoderDecoder) -> list[tf.Tensor]:
    return [tf.identity(weight.value) for weight in model.trainable_variables]


def one_step(student: EncoderDecoder, batch: dict, teacher: EncoderDecoder | None = None, parts: int = 1, **settings):
    """Makes one step; returns (weights, metrics)."""
    optimizer = Adafactor(learning_rate=Constant(1e-3))
    distillation = None if teacher is None else Distillation(SoftLoss(**settings), ModelTeacher(teacher))
    step = tf.function(make_train_step(student, optimizer, Objective(), parts, distillation), autograph=False)
    slots = [
        {name: tf.zeros(slot.shape) for name, slot in optimizer.slot_shapes(tuple(w.shape), w.axes).items()}
        for w in student.trainable_variables
    ]
    features = {name: tf.constant(array) for name, array in batch.items()}
    arguments = [] if teacher is None else [values_of(teacher)]
    weights, _, metrics = step(
        values_of(student), slots, tf.constant(0, tf.int64), features, tf.constant(0), *arguments
    )
    return weights, metrics


@pytest.fixture
def teacher_config(tiny_config):
    return dataclasses.replace(tiny_config, eval_capacity_factor=None)


@pytest.fixture
def student_config(tiny_config):
    return dataclasses.replace(tiny_config, num_experts=0)


@pytest.mark.parametrize("settings", [{"fraction": 0.0}, {"start_step": 1}])
def test_without_a_share_of_the_teacher_a_step_is_a_plain_one_bit_for_bit(teacher_config, student_config, settings):
    batch, student = random_features(), built(student_config, seed=1)
    plain, plain_metrics = one_step(student, batch)
    weights, metrics = one_step(student, batch, built(teacher_config, seed=0), **settings)
    for one, other in zip(plain, weights):
        np.testing.assert_array_equal(one, other)
    assert float(metrics.loss) == float(plain_metrics.loss) and not plain_metrics.teacher


def test_microbatches_distil_as_the_whole_batch(teacher_config, student_config):
    """Dropless, a teacher's predictions do not depend on the rest of the batch."""
    batch, student, teacher = random_features(), built(student_config, seed=1), built(teacher_config, seed=0)
    whole, parts = (one_step(student, batch, teacher, parts, temperature=2.0)[1] for parts in (1, 2))
    assert whole.teacher.keys() == set(ModelTeacher.scalars)
    for name in whole.teacher:
        np.testing.assert_allclose(whole.teacher[name], parts.teacher[name], rtol=1e-5, err_msg=name)
    for name in ("loss", "neg_log_perplexity", "gradient_norm"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-4, err_msg=name)


def test_a_student_that_is_its_teacher_begins_with_the_teachers_loss_and_entropy(student_config):
    model, batch = built(student_config, seed=0), random_features()
    _, metrics = one_step(model, batch, model, fraction=0.25)
    _, plain = one_step(model, batch)
    of_teacher = {name: float(value) for name, value in metrics.teacher.items()}
    assert of_teacher["soft_cross_entropy"] == pytest.approx(of_teacher["teacher_entropy"], rel=1e-6)
    assert of_teacher["teacher_neg_log_perplexity"] == pytest.approx(float(plain.neg_log_perplexity), rel=1e-6)
    assert float(metrics.neg_log_perplexity) == float(plain.neg_log_perplexity)
    assert of_teacher["teacher_agreement"] == 1.0


def test_a_teacher_in_bfloat16_predicts_as_one_that_was_rounded(teacher_config):
    model, batch = built(teacher_config, seed=0), random_features()
    features = {name: tf.constant(array) for name, array in batch.items()}
    teacher = ModelTeacher(model)
    halves = [tf.cast(weight, tf.bfloat16) for weight in values_of(model)]
    rounded = [tf.cast(weight, tf.float32) for weight in halves]
    of_halves, of_rounded = (teacher.soft_targets(weights, features, 1.0) for weights in (halves, rounded))
    np.testing.assert_array_equal(of_halves.probabilities, of_rounded.probabilities)


def test_an_evaluation_measures_the_teacher_beside_the_student(teacher_config, student_config):
    student, teacher = built(student_config, seed=1), built(teacher_config, seed=0)
    features = {name: tf.constant(array) for name, array in random_features().items()}
    evaluate = make_evaluation_step(student, ModelTeacher(teacher))
    sums = evaluate(values_of(student), features, values_of(teacher))
    alone = make_evaluation_step(teacher)(values_of(teacher), features)
    assert float(sums.teacher["teacher_neg_log_perplexity"]) == pytest.approx(
        -float(alone.tokens.negative_log_likelihood), rel=1e-6
    )
    best = [model(features).numpy().argmax(-1) for model in (student, teacher)]
    real = features["decoder_target_tokens"].numpy() != 0
    assert float(sums.teacher["teacher_agreement"]) == (best[0] == best[1])[real].sum()
