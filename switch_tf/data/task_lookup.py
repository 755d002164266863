"""Tasks and mixtures by name, and checks that a run's settings fit them."""

from __future__ import annotations

import seqio

from switch_tf.errors import SettingError, nearest


def find_task(mixture_or_task: str, setting: str = "MIXTURE_OR_TASK") -> seqio.Task | seqio.Mixture:
    """Looks a name up in seqio's registries.

    Args:
      mixture_or_task: the name.
      setting: the setting that holds it, for the error.

    Returns:
      The task or mixture.

    Raises:
      SettingError: if nothing of that name is registered.
    """
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if mixture_or_task not in known:
        hint = nearest(mixture_or_task, known)
        raise SettingError(
            f"{setting} = '{mixture_or_task}' is not registered{hint}; a gin file that imports the module "
            "which registers it is needed (`import tasks.all` for all of docs/tasks.md)."
        )
    return seqio.get_mixture_or_task(mixture_or_task)


def tasks_of(provider: seqio.Task | seqio.Mixture) -> list[seqio.Task]:
    """Returns a mixture's tasks, or the task alone."""
    return list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]


def check_split(task: seqio.Task | seqio.Mixture, split: str) -> None:
    """Checks that a task has a split.

    Raises:
      SettingError: if it does not.
    """
    if split not in task.splits:
        raise SettingError(f"{task.name} has no split '{split}': it has {', '.join(sorted(task.splits))}.")


def vocabulary_of(mixture_or_task: str) -> seqio.Vocabulary:
    """Returns the vocabulary of the task's targets."""
    return find_task(mixture_or_task).output_features["targets"].vocabulary


def check_vocabulary(mixture_or_task: str, vocab_size: int) -> None:
    """Checks that every id of the task's vocabulary has a row in an embedding table of `vocab_size` rows.

    Raises:
      SettingError: if there are more ids than rows.
    """
    ids = vocabulary_of(mixture_or_task).vocab_size
    if ids > vocab_size:
        rounded = -(-ids // 128) * 128
        raise SettingError(
            f"VOCAB_SIZE = {vocab_size} is too small for the vocabulary of {mixture_or_task}, which has {ids} ids "
            f"with its sentinels: set VOCAB_SIZE = {rounded}."
        )


def empty_split(mixture_or_task: str, split: str, num_shards: int = 1) -> SettingError:
    """Returns the error for a split, or for one of its `num_shards` shards, that has no example."""
    shard = f" for one of NUM_DATA_SHARDS = {num_shards}" if num_shards > 1 else ""
    return SettingError(
        f"MIXTURE_OR_TASK = '{mixture_or_task}' yields no example in its split '{split}'{shard}: is its text there, "
        "and long enough for TASK_FEATURE_LENGTHS?"
    )
