"""The optional dependencies of the [cloud] extra."""

import contextlib
from collections.abc import Iterator

from switch_tf.errors import SettingError


@contextlib.contextmanager
def require_cloud_extra() -> Iterator[None]:
    """Turns an ImportError inside the block into a sentence that says what to install.

    Raises:
      SettingError: if a package of the extra is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise SettingError(
            f"Jobs on Cloud TPUs need {error.name or 'a package'}: pip install 'switch-tf[cloud]'."
        ) from error
