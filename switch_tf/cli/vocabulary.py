"""`switch-tf vocabulary`."""

import argparse

from switch_tf.cli import flags

_EXAMPLES = """\
examples:
  switch-tf vocabulary 'text/*.jsonl.gz' --num_pieces=32000 --output=mine.model
  switch-tf vocabulary --gin_file=gin/runs/python_docs.gin --num_pieces=4096 --output=python.model
  switch-tf vocabulary --gin_file=gin/runs/pretrain_multilingual.gin --num_pieces=64000 --output=many.model
"""


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = flags.add_with_examples(commands, "vocabulary", "train a SentencePiece vocabulary", _EXAMPLES)
    flags.add_gin(parser)
    parser.add_argument(
        "files",
        nargs="*",
        type=flags.path,
        metavar="FILE",
        help="plain text, .jsonl or .json; .gz or not; names or patterns",
    )
    parser.add_argument("--task", metavar="NAME", help="instead of files: a seqio name (default: MIXTURE_OR_TASK)")
    parser.add_argument("--split", default="train", help="which split of the task (default: %(default)s)")
    parser.add_argument("--key", default="text", help="which entry of a JSON object is text (default: %(default)s)")
    parser.add_argument(
        "--num_pieces", type=int, default=32000, metavar="N", help="without the 100 sentinels (default: %(default)s)"
    )
    parser.add_argument("--output", required=True, type=flags.path, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--max_characters", type=int, default=20_000_000, metavar="N", help="text to read (default: %(default)s)"
    )
    parser.add_argument("--max_documents", type=int, metavar="N", help="documents to read (default: any number)")


def run(options: argparse.Namespace) -> None:
    """Trains the vocabulary on files or on the configured task."""
    from switch_tf.data import sentencepiece
    from switch_tf.runs import gin_config

    task = options.task or (None if options.files else gin_config.parameter("Experiment.mixture_or_task", None))
    sentencepiece.make_vocabulary(
        options.output,
        options.num_pieces,
        files=options.files,
        mixture_or_task=task,
        split=options.split,
        key=options.key,
        max_characters=options.max_characters,
        max_documents=options.max_documents,
    )
