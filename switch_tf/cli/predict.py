"""`switch-tf predict`."""

import argparse
import sys

from switch_tf.cli import flags, teacher_flags

_EXAMPLES = """\
examples:
  switch-tf predict --model_dir=runs/mine "The <extra_id_0> statement returns <extra_id_1>."
  switch-tf predict --model_dir=runs/glue "sst2 sentence: a joy to watch"
  switch-tf predict --model_dir=runs/glue --task=glue_sst2 --file=reviews.jsonl --output=labels.jsonl
  tail -f log.txt | switch-tf predict --model_dir=runs/mine --stream
  switch-tf predict --model_dir=runs/mine --gin.DECODER='"beam"' --gin.NUM_BEAMS=8 --file=texts.txt
"""


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = flags.add_with_examples(commands, "predict", "predict the targets of texts of your own", _EXAMPLES)
    flags.add_gin(parser)
    flags.add_model_dir(parser)
    parser.add_argument("text", nargs="*", help="a text, in quotes; with sentinels for a pre-trained model")
    flags.add_lines(parser)
    parser.add_argument("--field", metavar="NAME", help="lines are JSON objects; the text is in this field")
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="lines are JSON objects with the raw fields of a seqio task, whose preprocessing and postprocessing apply",
    )
    parser.add_argument("--prefix", metavar="TEXT", help="what each target starts with")
    parser.add_argument("--stream", action="store_true", help="predict each line as it comes, from standard input")
    parser.add_argument(
        "--held_out",
        type=int,
        metavar="N",
        help="instead of texts of your own, take N examples spread over the held-out split",
    )
    teacher_flags.add_flags(parser)


def run(options: argparse.Namespace) -> None:
    """Prints or writes predictions, or a teacher's probabilities; status 1 if a line of the file has no prediction."""
    if options.probabilities is not None:
        teacher_flags.run(options)
        return
    from switch_tf.runs import prediction

    request = prediction.Request(
        texts=options.text,
        fields=() if options.field is None else (options.field,),
        task=options.task,
        held_out=options.held_out,
        prefix=options.prefix,
        stream=options.stream,
        **flags.lines_of(options),
    )
    if prediction.predict(request):
        sys.exit(1)
