"""A run's teacher: what is refused before anything is allocated, and what its weights are."""

import dataclasses
import hashlib
import types

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.checkpoints.manifest import Manifest
from switch_tf.data import teacher_cache
from switch_tf.errors import SettingError
from switch_tf.interop.own_checkpoints import write_own
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engine import SingleEngine
from switch_tf.partitioning.layout import Layout
from switch_tf.runs.run import Run
from switch_tf.runs.teacher_settings import TeacherSettings, dropless
from switch_tf.runs.teachers import RunTeacher
from switch_tf.training.distillation import TEACHER_LOG_PROBABILITIES, TEACHER_OF_TARGETS, TEACHER_TOKENS, SoftLoss
from tests.support.random_weights import lazy, random_weights

LENGTHS = {"inputs": 16, "targets": 8}
ONE_DEVICE = Layout.parse("", "")
VOCABULARY = b"a vocabulary"
DIGEST = hashlib.sha256(VOCABULARY).hexdigest()


class FakeExperiment(types.SimpleNamespace):
    """What a teacher reads of an experiment."""

    vocabulary_path = "student/vocabulary/sentencepiece.model"
    mixture_or_task = "task"
    task_feature_lengths = LENGTHS
    batch_size = 8
    num_data_shards = 1
    pack = False

    def vocabulary_digest(self) -> str | None:
        return DIGEST


@pytest.fixture
def teacher_weights(tiny_config) -> dict[str, np.ndarray]:
    return random_weights(tiny_config)


@pytest.fixture
def checkpoint(tmp_path, tiny_config, teacher_weights) -> str:
    """The model directory of a sparse teacher with four experts."""
    manifest = Manifest(
        7,
        settings={"TASK_FEATURE_LENGTHS": LENGTHS},
        model=dataclasses.asdict(tiny_config),
        shapes={"step": (), **{name: array.shape for name, array in teacher_weights.items()}},
        vocabulary=DIGEST,
    )
    write_own(str(tmp_path / "teacher"), lazy(teacher_weights), manifest)
    return str(tmp_path / "teacher")


@pytest.fixture
def student(tiny_config) -> FakeExperiment:
    return FakeExperiment(model=dataclasses.replace(tiny_config, num_experts=0))


@pytest.fixture
def cache(tmp_path) -> str:
    """A cache of five examples, with random numbers."""
    random = np.random.default_rng(0)

    def example() -> dict[str, np.ndarray]:
        return {
            "encoder_input_tokens": random.integers(2, 96, 16, dtype=np.int32),
            "decoder_target_tokens": random.integers(2, 96, 8, dtype=np.int32),
            TEACHER_TOKENS: random.integers(2, 96, 24, dtype=np.int32),
            TEACHER_LOG_PROBABILITIES: -random.random(24, np.float32),
            TEACHER_OF_TARGETS: -random.random(8, np.float32),
        }

    vocabulary = tmp_path / "vocabulary"
    vocabulary.write_bytes(VOCABULARY)
    folder = str(tmp_path / "cache")
    description = teacher_cache.TeacherCache("teacher, step 7", "task", "train", LENGTHS, 96, DIGEST, 3, 2.0)
    description = teacher_cache.write_examples(folder, (example() for _ in range(5)), description, str(vocabulary))
    assert not teacher_cache.is_complete(folder)
    teacher_cache.complete(folder, description)
    return folder


def test_a_teacher_is_loaded_as_it_is_or_in_half_the_bytes(checkpoint, student, teacher_weights, capsys):
    engine = SingleEngine(ONE_DEVICE)
    for dtype in ("float32", "bfloat16"):
        teacher = RunTeacher(TeacherSettings(checkpoint, dtype=dtype), student, ONE_DEVICE)
        assert teacher.weights == []
        teacher.place(engine)
        shapes = teacher.model_teacher.weights
        names = [weight.path.split("/", 1)[1] for weight in teacher.model_teacher.model.trainable_variables]
        for name, variable, shape in zip(names, teacher.weights, shapes, strict=True):
            assert variable.dtype == tf.as_dtype(dtype) and tuple(variable.shape) == shape.shape
            expected = tf.cast(teacher_weights[name], dtype).numpy()
            np.testing.assert_array_equal(variable.numpy(), expected, err_msg=name)
    size = sum(array.size for array in teacher_weights.values())
    assert f"Teacher: {checkpoint}, step 7, {size:,} parameters.\n" in capsys.readouterr().out


def test_a_student_takes_what_both_have_by_name_and_shape(checkpoint, student, tiny_config, teacher_weights, capsys):
    """The teacher has four experts in the second layers, the student eight in all of its layers."""
    config = dataclasses.replace(tiny_config, num_experts=8, sparse_every=1, num_decoder_layers=1)
    model = EncoderDecoder(config, seed=3)
    model.build()
    before = {weight.path.split("/", 1)[1]: weight.numpy() for weight in model.trainable_variables}
    run = Run.weights(types.SimpleNamespace(model=model))
    teacher = RunTeacher(TeacherSettings(checkpoint), student, ONE_DEVICE)
    teacher.initialize(run, SingleEngine(ONE_DEVICE))
    fresh = []
    for name, variable in run.items():
        if name in teacher_weights and teacher_weights[name].shape == before[name].shape:
            np.testing.assert_array_equal(variable.numpy(), teacher_weights[name], err_msg=name)
        else:
            np.testing.assert_array_equal(variable.numpy(), before[name], err_msg=name)
            fresh.append(name)
    assert all("/feed_forward/" in name for name in fresh) and len(fresh) == 3 * 3
    line = capsys.readouterr().out
    assert (
        f"Starting with {len(run) - 9} of {len(run)} weights from the teacher {checkpoint}; fresh: {fresh[0]}, " in line
    )
    assert line.endswith(" and 6 more.\n")


def test_the_share_of_the_gain(checkpoint, student):
    """Table 6 of the paper: T5-Base -1.636, Switch-Base -1.444, and a student of -1.580 keeps 29 %."""
    teacher = RunTeacher(TeacherSettings(checkpoint, baseline=-1.636), student, ONE_DEVICE)
    values = teacher.with_share_of_gain({"neg_log_perplexity": -1.580, "teacher_neg_log_perplexity": -1.444})
    assert round(100 * values["share_of_gain"]) == 29
    assert teacher.evaluation_scalars[-1] == "share_of_gain"
    without = RunTeacher(TeacherSettings(checkpoint), student, ONE_DEVICE)
    assert "share_of_gain" not in without.with_share_of_gain({"neg_log_perplexity": -1.0})


def test_a_teacher_that_does_not_count_is_not_loaded(checkpoint, student):
    teacher = RunTeacher(TeacherSettings(checkpoint, SoftLoss(fraction=0.0)), student, ONE_DEVICE)
    teacher.place(SingleEngine(ONE_DEVICE))
    assert teacher.weights == [] and teacher.distillation is None and teacher.fixed_settings() == {}
    assert teacher.step_scalars == teacher.evaluation_scalars == ()


def test_a_teacher_of_other_lengths_says_so(checkpoint, student, capsys):
    student.task_feature_lengths = {"inputs": 16, "targets": 4}
    RunTeacher(TeacherSettings(checkpoint), student, ONE_DEVICE).place(SingleEngine(ONE_DEVICE))
    assert "It was trained with TASK_FEATURE_LENGTHS = {'inputs': 16, 'targets': 8}, and" in capsys.readouterr().out


def test_a_teacher_is_dropless_unless_its_experts_choose(tiny_config):
    assert dropless(tiny_config).eval_capacity_factor is None
    assert dropless(tiny_config, 2.0).eval_capacity_factor == 2.0
    choosing = dataclasses.replace(
        tiny_config, router="expert_choice", decoder_router="switch", eval_capacity_factor=1.5
    )
    assert dropless(choosing).eval_capacity_factor == 1.5
    dense = dataclasses.replace(tiny_config, num_experts=0)
    assert dropless(dense).num_experts == 0


def test_a_cache_is_read_endlessly_in_an_order_of_its_own(cache):
    def targets(seed: int, number: int, shard=None) -> list[tuple[int, ...]]:
        dataset = teacher_cache.cached_examples(cache, seed, shard)
        return [tuple(example["decoder_target_tokens"].numpy()) for example in dataset.take(number)]

    assert len({*targets(0, 10)}) == 5 and targets(0, 10) == targets(0, 10) != targets(1, 10)
    description = teacher_cache.read_description(cache)
    assert (description.num_examples, description.features[TEACHER_TOKENS]) == (5, ["int32", 24])
    halves = [targets(0, 6, types.SimpleNamespace(index=index, num_shards=2)) for index in range(2)]
    assert not {*halves[0]} & {*halves[1]} and len({*halves[0]} | {*halves[1]}) == 5


def test_a_cached_teacher_needs_no_model(cache, student):
    settings = TeacherSettings(None, SoftLoss(temperature=2.0), cache, initialize_student=False)
    teacher = RunTeacher(settings, student, ONE_DEVICE)
    assert teacher.model_teacher is None and teacher.distillation.teacher.num_choices == 3
    assert teacher.step_scalars[-1] == "teacher_tail" and teacher.evaluation_scalars == ()
    assert teacher.fixed_settings() == {
        "the cache of the teacher": "5 examples of task, 3 ids of each position, by teacher, step 7"
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": 128}, "predicts 96 ids and VOCAB_SIZE = 128: a student needs the teacher's vocabulary"),
        ({"mesh": "data:8"}, "does not fit beside the student: MESH_SHAPE = 'data:8' shards experts over 8 devices"),
        ({"vocabulary": b"another"}, "was trained with another vocabulary than student/vocabulary/sentencepiece.model"),
        ({"checkpoint": "{}/absent"}, "TEACHER = '.*absent' is not there, or empty"),
        ({"checkpoint": "{}/checkpoints/step_00000009"}, "TEACHER = '.*step_00000009' holds no checkpoint"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(checkpoint, student, monkeypatch, changes, sentence):
    settings = TeacherSettings(changes.get("checkpoint", "{}").format(checkpoint))
    student.model = dataclasses.replace(student.model, vocab_size=changes.get("vocab_size", 96))
    digest = hashlib.sha256(changes.get("vocabulary", VOCABULARY)).hexdigest()
    monkeypatch.setattr(FakeExperiment, "vocabulary_digest", lambda self: digest)
    layout = Layout.parse(changes.get("mesh", ""), "batch:data,experts:data" if "mesh" in changes else "")
    with pytest.raises(SettingError, match=sentence):
        RunTeacher(settings, student, layout)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"task_feature_lengths": {"inputs": 16, "targets": 9}},
            r"was written with TASK_FEATURE_LENGTHS = .*'targets': 8",
        ),
        ({"temperature": 1.0}, r"was written with TEACHER_TEMPERATURE = 2\.0, not 1\.0"),
        ({"mixture_or_task": "other"}, "was written with MIXTURE_OR_TASK = 'task', not 'other'"),
        ({"pack": True}, "was written with PACK = False, not True"),
        ({"num_data_shards": 6}, "NUM_DATA_SHARDS = 6 is more than .* has files, 5"),
        ({"cache": "absent"}, "TEACHER_CACHE = 'absent' holds no complete cache"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(cache, student, changes, sentence):
    soft_loss = SoftLoss(temperature=changes.pop("temperature", 2.0))
    settings = TeacherSettings(None, soft_loss, changes.pop("cache", cache), initialize_student=False)
    for name, value in changes.items():
        setattr(student, name, value)
    with pytest.raises(SettingError, match=sentence):
        RunTeacher(settings, student, ONE_DEVICE)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"checkpoint": None}, "TEACHER = None needs TEACHER_CACHE"),
        ({"checkpoint": None, "cache": "cache"}, "INITIALIZE_FROM_TEACHER = True needs TEACHER"),
        ({"dtype": "float16"}, "TEACHER_DTYPE = 'float16' must be 'float32' or 'bfloat16'"),
        ({"eval_capacity_factor": 0.0}, "TEACHER_CAPACITY_FACTOR = 0.0 must be positive, or None"),
        ({"baseline": "-1.6"}, "BASELINE_NLP = '-1.6' must be of the type float"),
    ],
)
def test_settings_that_are_wrong(settings, sentence):
    with pytest.raises(SettingError, match=sentence):
        TeacherSettings(**{"checkpoint": "teacher", **settings})
