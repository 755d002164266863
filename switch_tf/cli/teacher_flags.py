"""The flags of `switch-tf predict` that write a teacher's probabilities instead of text."""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; `--output` and `--step` are the command's own."""
    group = parser.add_argument_group(
        "a teacher's probabilities", "for students that are trained without the teacher in memory (TEACHER_CACHE)"
    )
    group.add_argument(
        "--probabilities",
        type=int,
        metavar="K",
        help="write the K most probable ids of every target position of the run's task into the folder --output",
    )
    group.add_argument("--split", default="train", help="which split of the task (default: %(default)s)")
    group.add_argument("--num_examples", type=int, metavar="N", help="how many examples; the whole split by default")
    group.add_argument(
        "--softmax_temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="of the probabilities: the student's TEACHER_TEMPERATURE (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Writes the probabilities that `options` ask for."""
    from switch_tf.runs.teacher_probabilities import Probabilities, write_probabilities

    wanted = Probabilities(
        options.output, options.probabilities, options.split, options.num_examples, options.softmax_temperature
    )
    write_probabilities(wanted, options.step)
