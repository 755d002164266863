"""A task's preprocessing and postprocessing for examples of one's own."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from switch_tf.data.task_lookup import find_task
from switch_tf.errors import SettingError

Fields = dict[str, Any]
# Fields that preprocessing reads and a person does not have: a label, an index. -1 is an unknown label in T5's tasks.
_UNKNOWN = -1


# AutoGraph appends the original error to a trace of the user's code.
_IN_TRACE = re.compile(r"KeyError: '([^']+)'\s*$")


def _missing_field(error: KeyError) -> str:
    found = _IN_TRACE.search(str(error.args[0]))
    return found[1] if found else str(error.args[0])


class TaskInputs:
    """Turns the raw fields of examples into the model's inputs as a task does, and predictions into answers."""

    def __init__(self, name: str):
        """Finds the task.

        Args:
          name: of a seqio task.

        Raises:
          SettingError: if there is none, or it is a mixture.
        """
        task = find_task(name, "--task")
        if not isinstance(task, seqio.Task):
            raise SettingError(f"--task={name} is a mixture: name one of its tasks.")
        self._task = task

    def preprocessed(self, examples: Sequence[Mapping[str, Any]]) -> list[Fields | SettingError]:
        """Runs the task's preprocessors.

        Args:
          examples: their raw fields; those that the preprocessors read and that are missing are -1.

        Returns:
          For each example its features, `inputs` (int32 ids) among them, or what is wrong with it.
        """
        try:
            together = self._run(examples)
            if len(together) == len(examples):
                return list(together)
        except (KeyError, ValueError, TypeError, tf.errors.OpError):
            pass  # Something is wrong with one of them.
        return [self._alone(example) for example in examples]

    def _alone(self, example: Mapping[str, Any]) -> Fields | SettingError:
        try:
            found = self._run([example])
        except (KeyError, ValueError, TypeError, tf.errors.OpError) as error:
            reason = " ".join(str(error).split())[-200:]
            return SettingError(f"{self._task.name} cannot preprocess {dict(example)}: {reason}")
        if len(found) != 1:
            return SettingError(f"{self._task.name} makes {len(found)} examples of {dict(example)}, not one.")
        return found[0]

    def _run(self, examples: Sequence[Mapping[str, Any]]) -> list[Fields]:
        columns = {name: [example[name] for example in examples] for name in examples[0]}
        missing: set[str] = set()
        while True:
            try:
                dataset = tf.data.Dataset.from_tensor_slices(columns)
                dataset = self._task.preprocess_precache(dataset)
                # Nothing is trimmed: what is too long is reported.
                return list(self._task.preprocess_postcache(dataset, sequence_length=None).as_numpy_iterator())
            except KeyError as error:
                name = _missing_field(error)
                if name in missing or name in columns:
                    raise
                missing.add(name)
                columns[name] = [_UNKNOWN] * len(examples)

    def answer(self, prediction: str, features: Fields) -> Any:
        """Returns what the task's postprocessing makes of a predicted text, for JSON."""
        answer = self._task.postprocess_fn(prediction, example=features, is_target=False)
        return answer.tolist() if isinstance(answer, np.generic | np.ndarray) else answer
