"""Tasks and mixtures by name, and their vocabularies."""

import pytest
import seqio

import tests.support.tiny_task  # noqa: F401 (registers tasks)
from switch_tf.data.task_lookup import check_vocabulary, find_task, tasks_of
from switch_tf.errors import SettingError
from tasks import vocabularies

TASK = "tiny_span_corruption"


def test_a_mixture_has_its_tasks_and_a_task_itself():
    task = find_task(TASK)
    assert tasks_of(task) == [task]
    assert tasks_of(seqio.Mixture("looked_up", [task], default_rate=1.0)) == [task]


def test_the_setting_of_an_unknown_name_is_named():
    with pytest.raises(SettingError, match=r"EVAL_TASK = 'tiny_span_coruption'.*mean 'tiny_span_corruption'"):
        find_task("tiny_span_coruption", "EVAL_TASK")


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    vocabularies.TrainedVocabulary(task=TASK, num_pieces=400).install(str(tmp_path))
    check_vocabulary(TASK, 500)
    with pytest.raises(SettingError, match=r"VOCAB_SIZE = 499 is too small.*500 ids.*VOCAB_SIZE = 512"):
        check_vocabulary(TASK, 499)
