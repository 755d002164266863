"""`switch-tf train`."""

import argparse

from switch_tf.cli import flags


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = commands.add_parser("train", help="train a model, or resume where the model directory stands")
    flags.add_gin(parser)


def run(options: argparse.Namespace) -> None:
    """Trains the configured experiment."""
    from switch_tf.runs import loop

    del options
    loop.train()
