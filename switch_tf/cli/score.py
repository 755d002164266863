"""`switch-tf score`."""

import argparse
import sys

from switch_tf.cli import flags

_EXAMPLES = """\
examples:
  switch-tf score --model_dir=runs/mine "The <extra_id_0> statement." "<extra_id_0> return"
  switch-tf score --model_dir=runs/mine --file=pairs.jsonl --output=scores.jsonl
"""


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = flags.add_with_examples(commands, "score", "measure the log likelihood of given targets", _EXAMPLES)
    flags.add_gin(parser)
    flags.add_model_dir(parser)
    parser.add_argument("text", nargs="*", help="an input and its target, each in quotes")
    flags.add_lines(parser)
    parser.add_argument("--inputs", default="inputs", metavar="NAME", help="the field of the inputs in JSON lines")
    parser.add_argument("--targets", default="targets", metavar="NAME", help="the field of the targets in JSON lines")


def run(options: argparse.Namespace) -> None:
    """Prints or writes log likelihoods in nats; ends with status 1 if a line of the file has none."""
    from switch_tf.runs import prediction

    request = prediction.Request(
        texts=options.text, fields=(options.inputs, options.targets), **flags.lines_of(options)
    )
    if prediction.score(request):
        sys.exit(1)
