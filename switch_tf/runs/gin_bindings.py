"""What gin has parsed: every binding is read by something and has the type that its reader declares."""

import inspect
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
from gin.config import ConfigurableReference, ParsedBindingKey, iterate_references

from switch_tf import compat
from switch_tf.errors import Deferred, SettingError, check_type, nearest

_MACRO = "gin.macro"
# The configurables that code calls by itself; all others of ours do something where a binding refers to them.
_CALLED = (
    *("train", "Experiment", "ModelConfig", "Study", "write_cache", "own_files", "c4_files", "benchmark_averages"),
    *("Languages", "Decoding", "TaskEvaluation", "Adafactor"),
)
_OURS = ("switch_tf.", "tasks.")


def macros() -> dict[str, Any]:
    """Returns the value of every macro, other macros in it unresolved."""
    return {scope: values["value"] for (scope, name), values in compat.gin_bindings().items() if name == _MACRO}


def is_required(value: object) -> bool:
    """Whether a value is the one that a gin file leaves to the user, `%gin.REQUIRED`."""
    return isinstance(value, ConfigurableReference) and value.config_key == ("gin.REQUIRED", "gin.constant")


def no_value(name: str) -> SettingError:
    """Returns the error for a macro that is read and not set."""
    return SettingError(f"{name} has no value: set it with --gin.{name}=... or in a gin file.")


def references() -> set[tuple[str, str]]:
    """Returns (scope, configurable) of all references in bindings; the scope of a macro is its name."""
    return {reference.config_key for reference in iterate_references(compat.gin_bindings())}


def _names(keys: set[tuple[str, str]]) -> set[str]:
    return {scope for scope, name in keys if name == _MACRO}


def check_read(bindings: Sequence[str], read_by_files: set[tuple[str, str]]) -> None:
    """Refuses bindings that nothing reads: gin itself accepts `TRIAN_STEPS = 3` and `num_experts = 32` silently.

    A macro whose reader a binding has overridden (`NUM_EXPERTS`, with `--gin.ModelConfig.num_experts=0`) is allowed.

    Args:
      bindings: those of the command line, whose configurables too must be used.
      read_by_files: the references before the bindings were parsed.

    Raises:
      SettingError: with the name of a binding that nothing reads, or of a macro that has no value.
    """
    used = references()
    _check_macros(_names(used), _names(read_by_files))
    for binding in bindings:
        _check_configurable(binding.partition("=")[0].strip(), used | read_by_files)


def _check_macros(referenced: set[str], read_by_files: set[str]) -> None:
    defined = macros().keys()
    for name in sorted(defined - referenced - read_by_files):
        suggestion = nearest(name.rpartition("/")[2], referenced)
        raise SettingError(f"{name} is set, but nothing in these gin files reads it{suggestion}.")
    for name in sorted(referenced - defined):
        raise no_value(name) if name else SettingError("A value refers to a macro without a name: write %NAME.")


def _check_configurable(name: str, used: set[tuple[str, str]]) -> None:
    if "." not in name:  # A macro.
        return
    key = ParsedBindingKey.parse(name)
    short = _short(key.complete_selector)
    if not _is_used(key.complete_selector, {configurable for _, configurable in used}):
        raise SettingError(
            f"{name} is set, but nothing in these gin files refers to @{short}: add the gin file that does (such as "
            "gin/runs/pretrain.gin), bind it to a setting, or leave it out."
        )
    # What a macro refers to is made in a scope of the macro's name, and the recorded configuration says so.
    # A user's own code may enter any scope.
    is_ours = key.complete_selector.startswith(_OURS)
    if key.scope and is_ours and not any(f"{scope}/".startswith(f"{key.scope}/") for scope, _ in used):
        raise SettingError(f"{name} is set, but nothing refers to @{key.scope}/{short}().")


def _is_used(configurable: str, used: set[str]) -> bool:
    """Whether a configurable is referred to, or called by code: of a user's own it is not known."""
    return configurable in used or _short(configurable) in _CALLED or not configurable.startswith(_OURS)


def _short(configurable: str) -> str:
    return configurable.rpartition(".")[2]


def check_types() -> None:
    """Checks the value of every binding in use against the type that its function or class declares.

    Raises:
      SettingError: with the name of one of another type: of the macro, where the value is one's.
    """
    values_of, used = macros(), {name for _, name in references()}
    for (_, configurable), values in compat.gin_bindings().items():
        if configurable == _MACRO or not _is_used(configurable, used):
            continue
        hints = _hints(compat.gin_configurable(configurable))
        for parameter, value in values.items():
            name, value = _resolved(f"{_short(configurable)}.{parameter}", value, values_of)
            if parameter in hints and not is_required(value):
                try:
                    check_type(name, _stand_in(value, values_of), hints[parameter])
                except RecursionError as error:
                    raise SettingError(f"{name} refers to itself: give it a value.") from error


def _hints(configurable: Callable) -> Mapping[str, Any]:
    """The declared types of a configurable's parameters; that of a default of None may be left undeclared."""
    called = configurable.__init__ if isinstance(configurable, type) else configurable  # type: ignore[misc]
    try:
        parameters = inspect.signature(called).parameters
        return {
            name: hint | None if name in parameters and parameters[name].default is None else hint
            for name, hint in typing.get_type_hints(called).items()
        }
    except Exception:  # Of a user's own module: names that only a type checker imports, or no types at all.
        return {}


def _resolved(name: str, value: object, values_of: Mapping[str, object]) -> tuple[str, object]:
    """Follows macros to a value; returns the name of the last macro (`name` without one) and the value."""
    passed: list[str] = []
    while isinstance(value, ConfigurableReference) and value.config_key[1] == _MACRO:
        name = value.config_key[0]
        if name in passed:
            raise SettingError(f"{' = %'.join([*passed, name])} is a circle of macros: give {name} a value.")
        passed.append(name)
        value = values_of[name]
    return name, value


def _stand_in(value: object, values_of: Mapping[str, object]) -> object:
    """Returns a value for `check_type`: macros resolved, and references not called to learn what they make."""
    _, value = _resolved("", value, values_of)
    if isinstance(value, list | tuple):
        return type(value)(_stand_in(entry, values_of) for entry in value)
    if isinstance(value, dict):
        return {key: _stand_in(entry, values_of) for key, entry in value.items()}
    if not isinstance(value, ConfigurableReference):
        return value
    made = value.configurable.wrapped
    if not value.evaluate:
        return made
    kind = made if isinstance(made, type) else _hints(made).get("return")
    kind = typing.get_origin(kind) or kind
    return Deferred(kind if isinstance(kind, type) else None, repr(value))


def expand_home() -> None:
    """Replaces `~` by the home directory in every value that is a path below it, in lists too."""
    for (scope, configurable), values in compat.gin_bindings().items():
        for parameter, value in values.items():
            expanded = _expanded(value)
            if expanded != value:
                gin.bind_parameter((scope, configurable, parameter), expanded)


def _expanded(value: Any) -> Any:
    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or value.startswith("~/") else value
    if isinstance(value, list | tuple):
        return type(value)(map(_expanded, value))
    if isinstance(value, dict):
        return {key: _expanded(entry) for key, entry in value.items()}
    return value
