"""`switch-tf tpu ...`: flags and handlers. What a command needs is imported when it runs."""

import argparse
from collections.abc import Callable


def add_parsers(commands) -> None:
    """Adds the commands under `switch-tf tpu`.

    Args:
      commands: what `add_subparsers` returned.
    """


# A handler takes the options and the bindings (`NAME = value`) of --gin.NAME=value, and raises SettingError.
COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {}
