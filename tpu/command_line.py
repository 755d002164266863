"""`switch-tf tpu ...`: flags and handlers. What a command needs is imported when it runs."""

import argparse
from collections.abc import Callable

from tpu.precompile import add_parser as add_precompile
from tpu.precompile import precompile


def add_parsers(commands) -> None:
    """Adds the commands under `switch-tf tpu`.

    Args:
      commands: what `add_subparsers` returned.
    """
    add_precompile(commands)


# A handler takes the options and the bindings (`NAME = value`) of --gin.NAME=value, and raises SettingError.
COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {"precompile": precompile}
