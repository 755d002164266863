"""`switch-tf report`."""

import argparse

from switch_tf.cli import flags


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = commands.add_parser("report", help="compare model directories: a table, loss.png, experts.png")
    parser.add_argument("model_dirs", nargs="+", metavar="MODEL_DIR", help="model directories that `train` made")
    parser.add_argument("--output", default=".", metavar="FOLDER", help="where the plots go (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Prints the table and writes the plots."""
    from switch_tf.report import comparison

    comparison.compare(options.model_dirs, options.output)
