"""`switch-tf experts`."""

import argparse

from switch_tf.cli import flags


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = commands.add_parser(
        "experts", help="say what each expert knows: its tokens on held-out data; experts.html"
    )
    flags.add_gin(parser)
    flags.add_model_dir(parser)
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument(
        "--num_batches", type=int, default=20, metavar="N", help="held-out batches to route (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=flags.path, metavar="FOLDER", help="where experts.html goes (default: the model directory)"
    )


def run(options: argparse.Namespace) -> None:
    """Prints the experts' tokens and writes the page."""
    from switch_tf.report import expert_page
    from switch_tf.runs.experiment import Experiment

    expert_page.write_experts(Experiment(), options.step, options.num_batches, options.output)
