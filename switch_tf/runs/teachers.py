"""The teacher of a run: whether it fits the student, its weights on the devices, what it adds to the run's files."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from switch_tf.checkpoints.folder import find_checkpoint
from switch_tf.checkpoints.manifest import Manifest
from switch_tf.data.teacher_cache import TeacherCache, read_description
from switch_tf.errors import SettingError
from switch_tf.interop.lazy_tensors import LazyTensor
from switch_tf.interop.sources import Source
from switch_tf.interop.vocabulary_files import sentencepiece_model
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import ShardIndex
from switch_tf.partitioning.engine import Engine
from switch_tf.partitioning.layout import Layout
from switch_tf.planning.weight_specs import without_allocation
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.teacher_settings import TeacherSettings, checked_config, open_teacher
from switch_tf.training.distillation import EVALUATION_SCALARS, CachedTeacher, Distillation, ModelTeacher

SHARE_OF_GAIN = "share_of_gain"
_SHOWN = 3


class RunTeacher:
    """The teacher of a run.

    Attributes:
      settings: of it.
      weights: variables of the type `settings.dtype`, in the order of the model's, from `place` on.
      cache: what its cache is of; None if it has none.
    """

    def __init__(self, settings: TeacherSettings, experiment: Experiment, layout: Layout, num_microbatches: int = 1):
        """Opens the teacher and checks that it fits the student; allocates nothing.

        Args:
          settings: of the teacher.
          experiment: of the student, whose vocabulary has been installed.
          layout: the mesh that has to hold both.
          num_microbatches: microbatches of a batch.

        Raises:
          SettingError: if the teacher is not there, or does not fit.
        """
        self.settings = settings
        self.weights: list[tf.Variable] = []
        self._source = None if settings.checkpoint is None else open_teacher(settings.checkpoint)
        self._vocab_size = experiment.model.vocab_size
        self._model: EncoderDecoder | None = None
        self._note = ""
        self.cache = None if settings.cache is None else _checked_cache(settings, experiment)
        if self._source is None:
            return
        manifest = _manifest(self._source)
        _check_vocabulary(self._source, manifest, experiment)
        self._note = _note_of_lengths(manifest, experiment.task_feature_lengths)
        if settings.runs_beside_student:
            config = checked_config(
                settings,
                self._source,
                experiment.model,
                layout,
                experiment.batch_size,
                experiment.task_feature_lengths,
                num_microbatches,
            )
            with without_allocation():
                self._model = EncoderDecoder(config)
                self._model.build()

    @property
    def model_teacher(self) -> ModelTeacher | None:
        """The teacher as a pure function; None where it does not run beside the student."""
        return None if self._model is None else ModelTeacher(self._model)

    @property
    def distillation(self) -> Distillation | None:
        """What the training step needs; None where the teacher does not count."""
        if self.settings.soft_loss.fraction == 0:
            return None
        if self.cache is not None:
            return Distillation(self.settings.soft_loss, CachedTeacher(self.cache.num_choices, self._vocab_size))
        assert self._model is not None, "A teacher that counts and has no cache runs beside the student."
        return Distillation(self.settings.soft_loss, ModelTeacher(self._model))

    @property
    def step_scalars(self) -> tuple[str, ...]:
        """The columns that it adds to `metrics.csv`."""
        return () if self.distillation is None else self.distillation.teacher.scalars

    @property
    def evaluation_scalars(self) -> tuple[str, ...]:
        """The columns that it adds to `eval.csv`."""
        if self._model is None:
            return ()
        return EVALUATION_SCALARS if self.settings.baseline is None else (*EVALUATION_SCALARS, SHARE_OF_GAIN)

    def fixed_settings(self) -> dict[str, object]:
        """Returns what a resumed run must not change, for the manifest: which teacher it has."""
        if self.cache is not None:
            return {"the cache of the teacher": self.cache.phrase()}
        if self._model is None or self._source is None:
            return {}
        return {"the step of TEACHER": self._source.step}

    def place(self, engine: Engine) -> None:
        """Makes the teacher's variables, sharded by the layout rules, and reads their values, if it runs at all."""
        if self._model is None or self._source is None:
            return
        dtype = tf.as_dtype(self.settings.dtype)
        with engine.scope():
            for weight in self._model.trainable_variables:
                shape = tuple(weight.shape)
                with axis_names.making_weight(shape, weight.axes, lambda shard: tf.zeros(shard.shape)):
                    variable = tf.Variable(tf.zeros(shape, dtype), trainable=False, dtype=dtype)
                engine.load(variable, _reader(self._source.weights[weight_name(weight)], dtype))
                self.weights.append(variable)
        size = sum(np.prod(variable.shape) for variable in self.weights)
        engine.say(f"Teacher: {self._source.path}, step {self._source.step}, {int(size):,} parameters.{self._note}")

    def initialize(self, variables: Mapping[str, tf.Variable], engine: Engine) -> None:
        """Gives a student every weight that both have by name and shape, and says which ones it has not.

        Args:
          variables: the student's weights by name.
          engine: that holds them.
        """
        assert self._source is not None, "The settings name a checkpoint."
        theirs, fresh = self._source.weights, []
        for name, variable in variables.items():
            if name in theirs and theirs[name].shape == tuple(variable.shape):
                engine.load(variable, _reader(theirs[name], variable.dtype))
            else:
                fresh.append(name)
        shown = ", ".join(fresh[:_SHOWN]) + (f" and {len(fresh) - _SHOWN} more" if len(fresh) > _SHOWN else "")
        engine.say(
            f"Starting with {len(variables) - len(fresh)} of {len(variables)} weights from the teacher "
            f"{self._source.path}" + (f"; fresh: {shown}." if fresh else ".")
        )

    def with_share_of_gain(self, values: Mapping[str, float]) -> dict[str, float]:
        """Adds to an evaluation's numbers the share of the teacher's gain over the baseline that the student keeps.

        Table 6 of the paper: (student - baseline) / (teacher - baseline), in held-out negative log perplexity.
        """
        if self._model is None or self.settings.baseline is None:
            return dict(values)
        gain = values["teacher_neg_log_perplexity"] - self.settings.baseline
        kept = values["neg_log_perplexity"] - self.settings.baseline
        return {**values, SHARE_OF_GAIN: kept / gain if gain else float("nan")}


def _reader(tensor: LazyTensor, dtype: tf.DType) -> Callable[[ShardIndex], np.ndarray]:
    def read(index: ShardIndex) -> np.ndarray:
        return tensor.read_block(index.start, index.shape).astype(dtype.as_numpy_dtype)

    return read


def _manifest(source: Source) -> Manifest | None:
    """The manifest of a checkpoint of ours; None of another system's."""
    if source.kind != "switch_tf":
        return None
    checkpoints, step = find_checkpoint(source.path, "TEACHER")
    return checkpoints.manifest(step)


def _note_of_lengths(manifest: Manifest | None, ours: Mapping[str, int]) -> str:
    """A sentence where the teacher knows other lengths: its relative positions allow any, but it may predict worse."""
    theirs = None if manifest is None else manifest.settings.get("TASK_FEATURE_LENGTHS")
    if theirs is None or theirs == dict(ours):
        return ""
    return f" It was trained with TASK_FEATURE_LENGTHS = {theirs}, and this run has {dict(ours)}."


def _check_vocabulary(source: Source, manifest: Manifest | None, experiment: Experiment) -> None:
    """Checks that teacher and student mean the same by an id, where both say what they mean."""
    ours, theirs = experiment.vocabulary_digest(), None
    if manifest is not None:
        theirs = manifest.vocabulary
    elif source.vocabulary is not None:
        theirs = hashlib.sha256(sentencepiece_model(source.vocabulary)).hexdigest()
    if ours is not None and theirs is not None and ours != theirs:
        raise SettingError(
            f"TEACHER = '{source.path}' was trained with another vocabulary than {experiment.vocabulary_path}: set "
            "VOCABULARY = @TeacherVocabulary() in another MODEL_DIR."
        )


def _checked_cache(settings: TeacherSettings, experiment: Experiment) -> TeacherCache:
    assert settings.cache is not None
    cache, place = read_description(settings.cache), f"TEACHER_CACHE = '{settings.cache}'"
    differences: Sequence[tuple[str, object, object]] = (
        ("TASK_FEATURE_LENGTHS", dict(cache.lengths), dict(experiment.task_feature_lengths)),
        ("VOCAB_SIZE", cache.vocab_size, experiment.model.vocab_size),
        ("TEACHER_TEMPERATURE", cache.temperature, settings.soft_loss.temperature),
        ("MIXTURE_OR_TASK", cache.mixture_or_task, experiment.mixture_or_task),
        ("PACK", False, experiment.pack),
    )
    for name, theirs, ours in differences:
        if theirs != ours:
            raise SettingError(
                f"{place} was written with {name} = {theirs!r}, not {ours!r}: set it so, or write another."
            )
    if cache.vocabulary is not None and cache.vocabulary != experiment.vocabulary_digest():
        raise SettingError(
            f"{place} was written with another vocabulary than {experiment.vocabulary_path}: set VOCABULARY = "
            "@TeacherVocabulary() in another MODEL_DIR."
        )
    most = min(cache.num_files, cache.num_examples)
    if experiment.num_data_shards > most:
        raise SettingError(f"NUM_DATA_SHARDS = {experiment.num_data_shards} is more than {place} has files, {most}.")
    return cache
