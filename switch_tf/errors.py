"""The one style of error: a sentence that names the setting and the remedy; and the one check of settings' types."""

import dataclasses
import difflib
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterable


class SettingError(ValueError):
    """A setting, a file or a machine that keeps the run from going on, in one sentence that names the remedy.

    The command line prints the sentence and exits with status 2.
    """

    # Keras prefixes an error that a layer's call raises with the layer and its arguments, unless this marks it as done.
    _keras_call_info_injected = True


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggests what the user may have meant: ` (did you mean 'x'?)`, or every known name if none is similar."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (there is: {', '.join(names)})" if len(names) <= 12 else ""


def check_types(record: object, setting: Callable[[str], str] | None = None) -> None:
    """Checks that every field of a settings dataclass has a value of its declared type; gin passes any Python value.

    An int is accepted as a float.

    Args:
      record: an instance of a dataclass.
      setting: makes the setting's name of a field's, for the error; `Class.field` by default.

    Raises:
      SettingError: with the name of a field that has not.
    """
    hints = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):  # type: ignore[arg-type]  # Any dataclass.
        name = setting(field.name) if setting is not None else f"{type(record).__name__}.{field.name}"
        check_type(name, getattr(record, field.name), hints[field.name])


def check_type(name: str, value: object, hint: typing.Any) -> None:
    """Checks one value as `check_types` does; `hint` is a type annotation, and any but classes and unions pass.

    Raises:
      SettingError: if the value is of another type.
    """
    kinds = _kinds(hint)
    if kinds and not any(_is_of(value, kind) for kind in kinds):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise SettingError(f"{name} = {value!r} must be of the type {names}.")


def _kinds(hint: typing.Any) -> tuple[type, ...]:
    """Returns the classes that a type annotation allows; none where it is not made of classes (a protocol, say)."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(option) or option for option in options)
    return kinds if all(isinstance(kind, type) and not getattr(kind, "_is_protocol", False) for kind in kinds) else ()


def _is_of(value: object, kind: type) -> bool:
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, kind)


_RAISED_INSIDE = re.compile(r"\bSettingError: (.+)")


def sentence_inside(error: Exception) -> str | None:
    """Finds the sentence of a `SettingError` that Python code inside a tf.data pipeline raised.

    TensorFlow raises an error of its own instead, whose message has the Python error with its module and traceback.

    Args:
      error: what the pipeline raised.

    Returns:
      The sentence; None if there is none.
    """
    found = _RAISED_INSIDE.search(str(error))
    return found[1] if found else None
