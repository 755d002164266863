"""Reads gin files and bindings; every mistake in them ends in one sentence."""

import contextlib
import copy
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import gin

from switch_tf.errors import SettingError, nearest

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Where `gin/models/t5_base.gin` is looked for: here, in the checkout, in the installed package.
_SEARCH_PATHS = (pathlib.Path(), _PACKAGE.parent, _PACKAGE)

_DEFINITION = re.compile(r"^([A-Z][A-Z0-9_]*)\s*=", re.MULTILINE)
_REQUIRED = re.compile(r"^([A-Z][A-Z0-9_]*)\s*=\s*%gin\.REQUIRED", re.MULTILINE)
_REFERENCE = re.compile(r"%([A-Z][A-Z0-9_]*)")


def load(
    gin_files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str] = (),
    recorded: str | None = None,
) -> None:
    """Replaces the current configuration by files, then bindings.

    Args:
      gin_files: names, looked for in the search paths; later ones override earlier ones.
      bindings: `NAME = value` lines, which override the files.
      search_paths: folders to look in first.
      recorded: the text of a model directory's config.gin, read before the files.

    Raises:
      SettingError: if a file is missing, a line is not valid gin, a name is unknown, or nothing reads a macro.
    """
    gin.clear_config()
    with _one_sentence("config.gin of the model directory"):
        gin.parse_config(recorded or "")
    folders = [*map(pathlib.Path, search_paths), *_SEARCH_PATHS]
    for folder in folders:
        gin.add_config_file_search_path(str(folder))  # For what files include.
    for name in gin_files:
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            raise SettingError(f"--gin_file={name} is not there{_nearest_file(name)}; --gin_search_path adds folders.")
        with _one_sentence(f"--gin_file={name}"):
            gin.parse_config_file(str(path))
    read_by_files = _referenced_macros()
    for binding in bindings:
        with _one_sentence(f"--gin.{binding}"):
            gin.parse_config(binding)
    _check_macros(read_by_files)


@contextlib.contextmanager
def _one_sentence(source: str) -> Iterator[None]:
    """Turns what gin raises while it parses into a `SettingError` that names the source."""
    try:
        yield
    except SettingError:
        raise
    except (ValueError, TypeError, SyntaxError, NameError, RuntimeError, OSError, ImportError) as error:
        raise SettingError(f"{source}: {_first_sentence(error)}") from error


def _first_sentence(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) and error.msg else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."


def _nearest_file(name: str) -> str:
    there = {str(path.relative_to(root)) for root in _SEARCH_PATHS[1:] for path in root.glob("gin/**/*.gin")}
    return nearest(name, there)


def _referenced_macros() -> set[str]:
    return set(_REFERENCE.findall(gin.config_str(max_line_length=1000)))


def _check_macros(read_by_files: set[str]) -> None:
    """Refuses macros that are set and never read: gin itself accepts `TRIAN_STEPS = 3` silently.

    A macro whose reader a binding has overridden (`NUM_EXPERTS`, with `--gin.ModelConfig.num_experts=0`) is allowed.
    """
    referenced = _referenced_macros()
    defined = set(_DEFINITION.findall(gin.config_str(max_line_length=1000)))
    for name in sorted(defined - referenced - read_by_files):
        raise SettingError(f"{name} is set, but nothing in these gin files reads it{nearest(name, referenced)}.")
    for name in sorted(referenced - defined):
        raise _no_value(name)


def check_required(but: Sequence[str] = ()) -> None:
    """Checks that every macro which a gin file leaves to the user (`MODEL_DIR = %gin.REQUIRED`) has been set.

    Args:
      but: macros that the command does without.

    Raises:
      SettingError: with the name of one that has not.
    """
    for name in required_macros():
        if name not in but:
            raise _no_value(name)


def required_macros() -> list[str]:
    """Returns the macros that a gin file leaves to the user and that have not been set."""
    return _REQUIRED.findall(gin.config_str(max_line_length=1000))


def parameter(name: str, default: object = gin.REQUIRED, gin_file: str | None = None) -> Any:
    """Returns what a parameter of a configurable is bound to, with macros and references resolved.

    All commands read gin bindings by this function, so that `--gin.Experiment.mesh_shape=...` and
    `--gin.MESH_SHAPE=...` mean the same to each of them.

    Args:
      name: "Experiment.mesh_shape"; its configurable must have been imported.
      default: where nothing binds it.
      gin_file: one that binds it, for the error.

    Raises:
      SettingError: if nothing binds it and there is no default.
    """
    try:
        bound = gin.query_parameter(name)
    except ValueError as error:
        if default is not gin.REQUIRED:
            return default
        remedy = f"add --gin_file={gin_file}, or one that includes it" if gin_file else f"add --gin.{name}=..."
        raise SettingError(f"Nothing binds {name}: {remedy}.") from error
    # gin resolves a reference when it passes it to a function; a deep copy of `@Objective()` is the objective.
    return copy.deepcopy(bound)


def _no_value(name: str) -> SettingError:
    return SettingError(f"{name} has no value: set it with --gin.{name}=... or in a gin file.")


def macro_of_path(path: str) -> str | None:
    """Finds the macro that a file was looked for by.

    Args:
      path: of the file.

    Returns:
      The macro with its value, `MODEL_DIR = 'gs://bucket/run'`, whose value is the longest prefix of the path; None
      where there is none.
    """
    found = {}
    for name in _DEFINITION.findall(gin.config_str(max_line_length=1000)):
        value = macro(name)
        for prefix in [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else ():
            if isinstance(prefix, str) and "/" in prefix and path.startswith(prefix.partition("*")[0]):
                found[prefix] = f"{name} = '{prefix}'"
    return found[max(found, key=len)] if found else None


def macro(name: str, default: object = None) -> object:
    """Returns a macro's value, `default` where it is not set."""
    try:
        return gin.query_parameter(f"{name}/gin.macro.value")
    except ValueError:
        return default


def scalar_macros() -> dict[str, bool | int | float | str]:
    """Returns the macros that are numbers, strings or truth values, by name."""
    values = {name: macro(name) for name in _DEFINITION.findall(gin.config_str(max_line_length=1000))}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
