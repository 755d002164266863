"""The packages of the [cloud] extra, which are imported when they are needed."""

import contextlib
from collections.abc import Iterator

from switch_tf.errors import SettingError


@contextlib.contextmanager
def need_extra() -> Iterator[None]:
    """Turns an import that fails into the line that mends it.

    Raises:
      SettingError: if a package of the extra is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise SettingError(
            f"Jobs on Cloud TPUs need {error.name or 'a package'}: pip install 'switch-tf[cloud]'."
        ) from error
