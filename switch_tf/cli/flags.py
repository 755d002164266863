"""Flags that several commands share."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

Commands = argparse._SubParsersAction  # What `add_subparsers` returns; argparse gives it no public name.


def path(text: str) -> str:
    """The type of flags that name a file or a folder: `~` is the home directory, as after a space in a shell."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a file or a folder")
    return os.path.expanduser(text)


def add_gin(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that make an experiment of gin files."""
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        type=path,
        metavar="FILE",
        help="a gin file, such as gin/models/switch_base_128.gin; repeatable",
    )
    parser.add_argument(
        "--gin.NAME",
        dest="gin_binding",
        metavar="VALUE",
        help="set a macro or a parameter: --gin.TRAIN_STEPS=100, --gin.ModelConfig.d_ff=512; repeatable",
    )
    parser.add_argument(
        "--gin_search_path",
        action="append",
        default=[],
        type=path,
        metavar="FOLDER",
        help="look for gin files in this folder first; repeatable",
    )


def add_model_dir(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that reads the experiment of a run that is there."""
    parser.add_argument(
        "--model_dir",
        type=path,
        metavar="FOLDER",
        help="a model directory that `train` made: its config.gin is read first, so that no gin file is needed",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the flag for scripts."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on standard output"
    )


def add_lines(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of commands that take texts line by line."""
    parser.add_argument("--file", type=path, metavar="FILE", help="read lines from a file; - is standard input")
    parser.add_argument(
        "--output", type=path, metavar="PATH", help="write JSON lines with scores to this file; - is standard output"
    )
    parser.add_argument(
        "--too_long",
        choices=("refuse", "cut"),
        default="refuse",
        help="what to do with a text of more tokens than TASK_FEATURE_LENGTHS (default: %(default)s)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=16, metavar="N", help="texts at a time (default: %(default)s)"
    )
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")


def lines_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of the flags that `add_lines` adds, by name."""
    return {name: getattr(options, name) for name in ("file", "output", "too_long", "batch_size", "step")}


def add_with_examples(commands: Commands, name: str, help_text: str, examples: str) -> argparse.ArgumentParser:
    """Adds a command whose help ends with examples, as they are written.

    Args:
      commands: what `add_subparsers` returned.
      name: the command's.
      help_text: one phrase.
      examples: what its own help ends with.

    Returns:
      The command's parser.
    """
    return commands.add_parser(
        name, help=help_text, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def split_bindings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--gin.NAME=value` (or `--gin.NAME value`) from the other arguments; returns (bindings, the others)."""
    bindings, others = [], []
    arguments = list(arguments)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--gin."):
            others.append(argument)
            continue
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals and arguments:
            value = arguments.pop(0)
        bindings.append(f"{name} = {value}")
    return bindings, others
