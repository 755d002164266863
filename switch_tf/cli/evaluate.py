"""`switch-tf evaluate`."""

import argparse
import json
from collections.abc import Mapping, Sequence

from switch_tf.cli import flags
from switch_tf.errors import SettingError


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = commands.add_parser("evaluate", help="score checkpoints on held-out data, and on tasks by their metrics")
    flags.add_gin(parser)
    flags.add_model_dir(parser)
    flags.add_json(parser)
    parser.add_argument(
        "--step",
        action="append",
        type=lambda text: text if text == "best" else int(text),
        metavar="STEP",
        help="which checkpoint, by its step, or `best`; repeatable; the newest by default",
    )
    parser.add_argument("--all", action="store_true", help="score every checkpoint")
    parser.add_argument("--split", default="validation", help="which split of the data (default: %(default)s)")
    parser.add_argument(
        "--by_task", action="store_true", help="also measure the likelihood of each task of a mixture (language of mC4)"
    )
    parser.add_argument(
        "--num_batches", type=int, metavar="N", help="batches that a likelihood is measured on at most (default: all)"
    )
    parser.add_argument(
        "--output",
        type=flags.path,
        metavar="FOLDER",
        help="where predictions and TensorBoard's files go (default: the model directory)",
    )


def run(options: argparse.Namespace) -> None:
    """Scores checkpoints and prints a table or one JSON object.

    Raises:
      SettingError: if there is no such checkpoint, split or task, or the output cannot be written.
    """
    from switch_tf.runs.checkpoint_scores import CheckpointScorer, to_json
    from switch_tf.runs.experiment import Experiment

    if options.num_batches is not None and options.num_batches < 1:
        raise SettingError(f"--num_batches={options.num_batches} must be at least 1.")
    experiment = Experiment()
    scorer = CheckpointScorer(
        experiment,
        ["all"] if options.all else options.step or [],
        options.split,
        output=options.output,
        num_batches=options.num_batches,
        by_task=options.by_task,
        show_progress=not options.json,
    )
    scores = scorer()
    if options.json:
        scorer.engine.say(json.dumps(to_json(scores), indent=2))
    else:
        scorer.engine.say(f"{experiment.model_dir}, {scorer.held_out}, {options.split}")
        scorer.engine.say(_table([each.flat() for each in scores]))
    scorer.engine.processes.close()


def _table(columns: Sequence[Mapping[str, float]]) -> str:
    """One line per name, one column per checkpoint."""
    from tabulate import tabulate

    def shown(name: str, number: float) -> str:
        is_count = float(number).is_integer() and "/" not in name
        return f"{number:,.0f}" if is_count else f"{number:.4f}"

    rows = [[name, *(shown(name, values[name]) for values in columns)] for name in columns[0]]
    alignment = ("left", *["right"] * len(columns))
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=alignment)
