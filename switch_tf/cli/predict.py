"""`switch-tf predict`."""

import argparse

from switch_tf.cli import flags, teacher_flags


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = commands.add_parser("predict", help="fill the sentinels (<extra_id_0>, ...) of a text")
    flags.add_gin(parser)
    flags.add_model_dir(parser)
    parser.add_argument("text", nargs="*", help="a text with sentinels where words are missing, in quotes")
    parser.add_argument("--file", metavar="FILE", help="read texts from a file, one per line; - is standard input")
    parser.add_argument(
        "--held_out",
        type=int,
        metavar="N",
        help="instead of texts of your own, take N examples spread over the held-out split",
    )
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument("--output", metavar="PATH", help="where to write to, with --probabilities")
    teacher_flags.add_flags(parser)


def run(options: argparse.Namespace) -> None:
    """Prints the texts with their sentinels filled, or writes a teacher's probabilities."""
    if options.probabilities is not None:
        teacher_flags.run(options)
        return
    from switch_tf.runs import infilling

    infilling.predict(options.text, options.file, options.held_out, options.step)
