"""What the training examples depend on besides the name of the task: a run that resumes must find it unchanged."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import seqio

from switch_tf.data.cached_tasks import Cache, cached_settings
from switch_tf.data.task_lookup import find_task, tasks_of


@runtime_checkable
class Configured(Protocol):
    """A seqio source whose examples depend on settings of the run."""

    def settings(self) -> Mapping[str, object]:
        """Returns these settings by macro; the values can be written as JSON."""


def data_settings(mixture_or_task: str, cache: Cache | None = None) -> dict[str, object]:
    """Returns the settings that the training examples depend on.

    Args:
      mixture_or_task: a seqio name.
      cache: where tokens are cached; None to tokenize the text.

    Returns:
      Values that can be written as JSON, by macro: whether tokens come from a cache, and from which, or the settings of
      the tasks' sources; for a mixture, also the rate of each task.

    Raises:
      SettingError: if the data do not exist.
    """
    provider = find_task(mixture_or_task)
    is_cached = cache is not None and cache.use
    settings: dict[str, object] = {"USE_CACHED": is_cached}
    if cache is not None and is_cached:
        settings |= cached_settings(provider, cache)
    for task in tasks_of(provider):
        if isinstance(task.source, Configured) and not is_cached:
            settings |= task.source.settings()
        if isinstance(provider, seqio.Mixture):
            settings[f"the rate of {task.name}"] = provider.get_rate(task)
    return settings
