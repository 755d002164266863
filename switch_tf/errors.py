"""The one style of error: a sentence that names the setting and the mend."""

import difflib
import re
from collections.abc import Iterable


class SettingError(ValueError):
    """A setting, a file or a machine that keeps the run from going on, told in one sentence with its mend.

    The command line prints the sentence and leaves with exit status 2.
    """

    # Keras puts the layer and its arguments before any other error that a layer's call raises; this mark says that it
    # has been done.
    _keras_call_info_injected = True


def nearest(name: str, known: Iterable[str]) -> str:
    """Names what the user may have meant: ` (did you mean 'x'?)`, or every known name where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (there is: {', '.join(names)})" if len(names) <= 12 else ""


_RAISED_INSIDE = re.compile(r"\bSettingError: (.+)")


def sentence_inside(error: Exception) -> str | None:
    """Finds the sentence of a `SettingError` that Python code inside of a tf.data pipeline raised.

    TensorFlow makes an error of its own of it, with the Python one, its module and its traceback as text.

    Args:
      error: what came out of the pipeline.

    Returns:
      The sentence; None where there is none.
    """
    found = _RAISED_INSIDE.search(str(error))
    return found[1] if found else None
