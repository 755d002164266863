"""`switch-tf cache`."""

import argparse

from switch_tf.cli import flags

_EXAMPLES = """\
examples:
  switch-tf cache --gin_file=gin/runs/pretrain_c4.gin --gin.CACHE_DIR='"cache"'
  switch-tf train --gin_file=gin/models/switch_base_8.gin --gin_file=gin/runs/pretrain_c4.gin \\
      --gin.CACHE_DIR='"cache"' --gin.USE_CACHED=True --gin.MODEL_DIR='"runs/c4"'

A command that was interrupted resumes where it stopped when it is run again.
"""


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = flags.add_with_examples(commands, "cache", "tokenize a task once, ahead of training", _EXAMPLES)
    flags.add_gin(parser)
    parser.add_argument("--split", action="append", help="which split; repeatable (default: all)")
    parser.add_argument(
        "--min_shards", type=int, default=64, metavar="N", help="files of each split at least (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Caches the configured task."""
    from switch_tf.data import cache_writer

    cache_writer.write_cache(splits=options.split, min_shards=options.min_shards)
