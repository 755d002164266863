"""The one style of error: a sentence that names the setting and the remedy; and the one check of settings' types."""

import dataclasses
import difflib
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping


class SettingError(ValueError):
    """A setting, a file or a machine that keeps the run from going on, in one sentence that names the remedy.

    The command line prints the sentence and exits with status 2.
    """

    # Keras prefixes an error that a layer's call raises with the layer and its arguments, unless this marks it as done.
    _keras_call_info_injected = True


def shown(value: str) -> str:
    """Quotes a value for an error; one that would break the line, or move the cursor of a terminal, is escaped."""
    return f"'{value}'" if value.isprintable() else repr(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggests what the user may have meant: ` (did you mean 'x'?)`, or every known name if none is similar."""
    names = sorted(known)
    in_small_letters = {known_name.lower(): known_name for known_name in names}
    close = difflib.get_close_matches(name.lower(), in_small_letters, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{in_small_letters[close[0]]}'?)"
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


@dataclasses.dataclass(frozen=True)
class Deferred:
    """A value that is made when it is needed, as `check_type` sees it.

    Attributes:
      kind: its class; None where only the call will show it.
      text: how the user wrote it.
    """

    kind: type | None
    text: str

    def __repr__(self) -> str:
        return self.text


# What gin's syntax can write down; no protocol is made for them.
_LITERALS = (str, numbers.Number, list, tuple, dict)


def check_type(name: str, value: object, hint: typing.Any) -> None:
    """Checks one value as `check_types` does, with the elements of sequences and mappings.

    Args:
      name: of the setting.
      value: what it is set to, or a `Deferred`.
      hint: a type annotation; of what is not made of classes (a type variable, say), any value passes.

    Raises:
      SettingError: if the value is of another type, or has a number that no computation could use.
    """
    if not all(map(_is_usable, _numbers_in(value))):
        raise SettingError(
            f"{name} has a number that is infinite, or an integer of more than 64 bits: take a smaller one."
        )
    if not _matches(value, hint):
        raise SettingError(f"{name} = {value!r} must be of the type {_described(hint)}.")


def _numbers_in(value: object) -> Iterator[numbers.Real]:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers_in(entry)
    elif isinstance(value, numbers.Real):
        yield value


def _is_usable(number: numbers.Real) -> bool:
    return -(2**63) <= int(number) < 2**63 if isinstance(number, numbers.Integral) else math.isfinite(number)


def _options(hint: typing.Any) -> tuple[typing.Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or _origin(hint) is typing.Union else (hint,)


def _origin(hint: typing.Any) -> typing.Any:
    return typing.get_origin(hint) or hint


def _described(hint: typing.Any) -> str:
    return " or ".join(
        "None"
        if option is type(None)
        else str(option).replace("collections.abc.", "")
        if typing.get_args(option)
        else option.__name__
        for option in _options(hint)
    )


def _matches(value: object, hint: typing.Any) -> bool:
    return any(_matches_one(value, option) for option in _options(hint))


def _matches_one(value: object, hint: typing.Any) -> bool:
    kind, of = _origin(hint), typing.get_args(hint)
    if not isinstance(kind, type) or kind is typing.Any:
        return True
    if not _is_of(value, kind):
        return False
    if isinstance(value, Mapping) and len(of) == 2:
        return all(_matches(key, of[0]) and _matches(entry, of[1]) for key, entry in value.items())
    if isinstance(value, list | tuple) and issubclass(kind, Iterable) and of:
        elements = of[:1] * len(value) if kind is not tuple or of[-1] is Ellipsis else of
        return len(elements) == len(value) and all(map(_matches, value, elements))
    return True


def _is_of(value: object, kind: type) -> bool:
    if isinstance(value, Deferred):
        return value.kind is None or getattr(kind, "_is_protocol", False) or issubclass(value.kind, kind)
    if getattr(kind, "_is_protocol", False):
        return not isinstance(value, _LITERALS) and value is not None
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if isinstance(value, str):
        return issubclass(str, kind) and kind in (str, object)
    if typing.is_typeddict(kind):
        return isinstance(value, Mapping)
    return isinstance(value, (list, tuple) if kind in (list, tuple) else kind)


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
