"""Reads gin files and bindings; every mistake in them ends in one sentence."""

import contextlib
import copy
import pathlib
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

import gin

from switch_tf.errors import SettingError, nearest
from switch_tf.runs import gin_bindings

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Where `gin/models/t5_base.gin` is looked for: here, in the checkout, in the installed package.
_SEARCH_PATHS = (pathlib.Path(), _PACKAGE.parent, _PACKAGE)

# As other languages write what Python does.
_LITERALS = {"true": "True", "false": "False", "none": "None", "null": "None"}


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
      SettingError: if a file is missing, a line is not valid gin, a name is unknown, a value is of the wrong type, or
        nothing reads a binding.
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
    read_by_files = gin_bindings.references()
    for binding in bindings:
        _parse_binding(binding)
    gin_bindings.check_read(bindings, read_by_files)
    gin_bindings.check_types()
    gin_bindings.expand_home()


def _parse_binding(binding: str) -> None:
    name, _, value = (part.strip() for part in binding.partition("="))
    try:
        with _one_sentence(f"--gin.{name}={value}"):
            gin.parse_config(binding)
    except SettingError as error:
        if value[:1] in tuple("\"'[({@%") or ("/" not in value and _is_value(value)):
            raise
        literal = _LITERALS.get(value.lower())
        remedy = f"a string needs quotes, --gin.{name}='\"{value}\"'"
        if literal is not None:
            remedy = f"write --gin.{name}={literal}"
        raise SettingError(f"--gin.{name}={value} is not a valid gin value: {remedy}.") from error


def _is_value(text: str) -> bool:
    try:
        gin.config.parse_value(text)
    except (ValueError, SyntaxError):
        return False
    return True


@contextlib.contextmanager
def _one_sentence(source: str) -> Iterator[None]:
    """Turns what gin raises while it parses into a `SettingError` that names the source."""
    try:
        yield
    except SettingError:
        raise
    except tokenize.TokenError as error:
        raise SettingError(f"{source}: a bracket or a quote is not closed.") from error
    except (ValueError, TypeError, SyntaxError, NameError, RuntimeError, OSError, ImportError) as error:
        raise SettingError(f"{source}: {_first_sentence(error)}") from error


def _first_sentence(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) and error.msg else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."


def _nearest_file(name: str) -> str:
    there = {str(path.relative_to(root)) for root in _SEARCH_PATHS[1:] for path in root.glob("gin/**/*.gin")}
    return nearest(name, there)


def check_required(but: Sequence[str] = ()) -> None:
    """Checks that every macro which a gin file leaves to the user (`MODEL_DIR = %gin.REQUIRED`) has been set.

    Args:
      but: macros that the command does without.

    Raises:
      SettingError: with the name of one that has not.
    """
    for name in required_macros():
        if name not in but:
            raise gin_bindings.no_value(name)


def required_macros() -> list[str]:
    """Returns the macros that a gin file leaves to the user and that have not been set."""
    return [name for name, value in gin_bindings.macros().items() if gin_bindings.is_required(value)]


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


def macro_of_path(path: str) -> str | None:
    """Finds the macro that a file was looked for by.

    Args:
      path: of the file.

    Returns:
      The macro with its value, `MODEL_DIR = 'gs://bucket/run'`, whose value is the longest prefix of the path; None
      where there is none.
    """
    found = {}
    for name, value in gin_bindings.macros().items():
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
    values = gin_bindings.macros()
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
