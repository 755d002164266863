"""The command line: `switch-tf train | evaluate | predict | describe | report | vocabulary | cache | tpu`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from switch_tf.cli import flags as arguments
from switch_tf.cli import tpu as tpu_command_line

_EPILOG = """\
examples:
  switch-tf describe --gin_file=gin/models/switch_base_128.gin
  switch-tf train --gin_file=gin/models/switch_tiny_8.gin --gin_file=gin/runs/quickstart.gin \\
      --gin.MODEL_DIR='"runs/mine"' --gin.TRAIN_STEPS=500
  switch-tf predict --model_dir=runs/mine "The <extra_id_0> statement returns <extra_id_1> value."

An experiment is made of gin files: one from gin/models (which model), one from gin/runs (what to do with it), and
perhaps one from gin/layouts (on which devices). Later files override earlier ones, --gin.NAME=value overrides them all.
A string needs its own quotes inside of the shell's: --gin.MODEL_DIR='"runs/mine"'.
"""

_VOCABULARY_EXAMPLES = """\
examples:
  switch-tf vocabulary 'text/*.jsonl.gz' --num_pieces=32000 --output=mine.model
  switch-tf vocabulary --gin_file=gin/runs/quickstart.gin --num_pieces=4096 --output=python.model
  switch-tf vocabulary --gin_file=gin/runs/pretrain_multilingual.gin --num_pieces=64000 --output=many.model
"""

_CACHE_EXAMPLES = """\
examples:
  switch-tf cache --gin_file=gin/runs/pretrain_c4.gin --gin.CACHE_DIR='"cache"'
  switch-tf train --gin_file=gin/models/switch_base_8.gin --gin_file=gin/runs/pretrain_c4.gin \\
      --gin.CACHE_DIR='"cache"' --gin.USE_CACHED=True --gin.MODEL_DIR='"runs/c4"'

A command that was cut off goes on where it stood when it is given again.
"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="switch-tf",
        description="Train, evaluate and use Switch Transformers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a model, or go on where the model directory stands")
    arguments.add_gin(train)

    evaluate = commands.add_parser("evaluate", help="score checkpoints on held-out data, and on tasks by their metrics")
    arguments.add_gin(evaluate)
    arguments.add_model_dir(evaluate)
    arguments.add_json(evaluate)
    evaluate.add_argument(
        "--step",
        action="append",
        type=lambda text: text if text == "best" else int(text),
        metavar="STEP",
        help="which checkpoint, by its step, or `best`; may be given several times; the newest by default",
    )
    evaluate.add_argument("--all", action="store_true", help="score every checkpoint that there is")
    evaluate.add_argument("--split", default="validation", help="which split of the data (default: %(default)s)")
    evaluate.add_argument(
        "--by_task", action="store_true", help="measure the likelihood of each task of a mixture (language of mC4), too"
    )
    evaluate.add_argument(
        "--num_batches", type=int, metavar="N", help="batches that a likelihood is measured on at most (default: all)"
    )
    evaluate.add_argument(
        "--output", metavar="FOLDER", help="where predictions and TensorBoard's files go (default: the model directory)"
    )

    predict = commands.add_parser("predict", help="fill the sentinels (<extra_id_0>, ...) of a text")
    arguments.add_gin(predict)
    arguments.add_model_dir(predict)
    predict.add_argument("text", nargs="*", help="a text with sentinels where words are missing, in quotes")
    predict.add_argument("--file", metavar="FILE", help="read texts from a file, one on each line; - is standard input")
    predict.add_argument(
        "--held_out",
        type=int,
        metavar="N",
        help="instead of a text of yours, take N examples from all over the held-out split",
    )
    predict.add_argument("--step", type=int, help="which checkpoint; the newest by default")

    describe = commands.add_parser("describe", help="count a model's parameters, FLOPs and bytes without making it")
    arguments.add_gin(describe)
    arguments.add_model_dir(describe)
    arguments.add_json(describe)

    report = commands.add_parser("report", help="compare model directories: a table, loss.png, experts.png")
    report.add_argument("model_dirs", nargs="+", metavar="MODEL_DIR", help="model directories that `train` made")
    report.add_argument("--output", default=".", metavar="FOLDER", help="where the plots go (default: %(default)s)")

    with_examples = arguments.add_with_examples
    vocabulary = with_examples(commands, "vocabulary", "train a SentencePiece vocabulary", _VOCABULARY_EXAMPLES)
    arguments.add_gin(vocabulary)
    vocabulary.add_argument(
        "files", nargs="*", metavar="FILE", help="plain text, .jsonl or .json; .gz or not; names or patterns"
    )
    vocabulary.add_argument("--task", metavar="NAME", help="instead of files: a seqio name (default: MIXTURE_OR_TASK)")
    vocabulary.add_argument("--split", default="train", help="which split of the task (default: %(default)s)")
    vocabulary.add_argument("--key", default="text", help="which entry of a JSON object is text (default: %(default)s)")
    vocabulary.add_argument(
        "--num_pieces", type=int, default=32000, metavar="N", help="without the 100 sentinels (default: %(default)s)"
    )
    vocabulary.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    vocabulary.add_argument(
        "--max_characters", type=int, default=20_000_000, metavar="N", help="text to read (default: %(default)s)"
    )
    vocabulary.add_argument("--max_documents", type=int, metavar="N", help="documents to read (default: any number)")

    cache = with_examples(commands, "cache", "tokenise a task once, so that training need not", _CACHE_EXAMPLES)
    arguments.add_gin(cache)
    cache.add_argument("--split", action="append", help="which split; may be given several times (default: all)")
    cache.add_argument(
        "--min_shards", type=int, default=64, metavar="N", help="files of each split at least (default: %(default)s)"
    )

    tpu = commands.add_parser("tpu", help="submit, watch and resume jobs on Cloud TPUs")
    tpu_command_line.add_parsers(tpu.add_subparsers(dest="tpu_command", required=True, metavar="COMMAND"))
    return parser


def _prepare_libraries() -> None:
    # TensorFlow tells every CPU user that it found no GPU, at the level of errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Without a cache, TensorFlow fetches 64 MB from a bucket for every tensor of a checkpoint that it reads.
    os.environ.setdefault("GCS_READ_CACHE_BLOCK_SIZE_MB", "32")
    os.environ.setdefault("GCS_READ_CACHE_MAX_SIZE_MB", "512")
    # seqio brings JAX, which would take the TPU, or look for one where libtpu is installed: TensorFlow is to have it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)


def _load_configuration(options: argparse.Namespace, bindings: list[str]) -> None:
    from switch_tf.errors import SettingError
    from switch_tf.runs import gin_config as configuration
    from switch_tf.runs.experiment import read_description

    recorded = None
    model_dir = getattr(options, "model_dir", None)
    if model_dir is not None:
        recorded = read_description(model_dir)
        bindings = [*bindings, f"MODEL_DIR = {model_dir!r}"]
    elif not options.gin_file and not bindings:
        if getattr(options, "files", None):
            return
        raise SettingError(
            f"switch-tf {options.command} needs --gin_file=... (see `switch-tf {options.command} --help`)."
        )
    configuration.load(options.gin_file, bindings, options.gin_search_path, recorded)
    if options.command not in ("describe", "vocabulary"):
        configuration.check_required(but=("MODEL_DIR",) if options.command == "cache" else ())


def _train(options: argparse.Namespace) -> None:
    from switch_tf.runs import loop

    del options
    loop.train()


def _evaluate(options: argparse.Namespace) -> None:
    from switch_tf.cli import evaluate as scoring

    scoring.evaluate(
        ["all"] if options.all else options.step or [],
        options.split,
        options.json,
        options.output,
        options.num_batches,
        options.by_task,
    )


def _predict(options: argparse.Namespace) -> None:
    from switch_tf.cli import predict as commands

    commands.predict(options.text, options.file, options.held_out, options.step)


def _describe(options: argparse.Namespace) -> None:
    from switch_tf.planning import costs as describe

    describe.describe(options.json)


def _report(options: argparse.Namespace) -> None:
    from switch_tf.report import comparison

    comparison.compare(options.model_dirs, options.output)


def _vocabulary(options: argparse.Namespace) -> None:
    from switch_tf.data import sentencepiece as vocabulary
    from switch_tf.runs import gin_config as configuration

    task = options.task or (None if options.files else configuration.macro("MIXTURE_OR_TASK"))
    vocabulary.make_vocabulary(
        options.output,
        options.num_pieces,
        files=options.files,
        mixture_or_task=task,
        split=options.split,
        key=options.key,
        max_characters=options.max_characters,
        max_documents=options.max_documents,
    )


def _cache(options: argparse.Namespace) -> None:
    from switch_tf.data import cache_writer as caching

    caching.cache(splits=options.split, min_shards=options.min_shards)


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "describe": _describe,
    "report": _report,
    "vocabulary": _vocabulary,
    "cache": _cache,
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs one command; leaves with status 2 and one line for a user's mistake, 128 + n after signal n."""
    bindings, others = arguments.split_bindings(sys.argv[1:] if words is None else words)
    options = make_parser().parse_args(others)
    _prepare_libraries()
    if options.command == "tpu":
        _tpu(options, bindings)
        return

    # Not before: neither `switch-tf --help` nor what speaks to a cloud should take the seconds that TensorFlow's import
    # takes.
    import tensorflow as tf

    import switch_tf.runs.loop
    from switch_tf.errors import SettingError, sentence_inside

    try:
        if options.command != "report":
            _load_configuration(options, bindings)
        _COMMANDS[options.command](options)
    except switch_tf.runs.loop.Stopped as stopped:
        print(str(stopped).splitlines()[0], file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except SettingError as error:
        _fail(str(error))
    except tf.errors.InvalidArgumentError as error:
        sentence = sentence_inside(error)
        if sentence is None:
            raise
        _fail(sentence)
    except tf.errors.DataLossError as error:
        _fail(f"A file of the data is damaged: {error.message}")
    except tf.errors.OpError as error:
        sentence = _sentence_of_bucket(error)
        if sentence is None:
            raise
        _fail(sentence)
    except RuntimeError as error:
        # What gin raises for a parameter that has no value.
        if not str(error).startswith("Required bindings"):
            raise
        _fail(str(error))


def _sentence_of_bucket(error: Exception) -> str | None:
    """Tells what a bucket refused, and by which setting it was asked; None if the error is of something else."""
    from switch_tf import storage
    from switch_tf.runs import gin_config as configuration

    refusal = storage.refusal(error)
    if refusal is None:
        return None
    address = storage.address_in(error)
    return f"{configuration.macro_of_path(address) or address}: {refusal}."


def _tpu(options: argparse.Namespace, bindings: list[str]) -> None:
    from switch_tf.errors import SettingError

    try:
        tpu_command_line.COMMANDS[options.tpu_command](options, bindings)
    except SettingError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    # gin adds lines about the call that failed; the first one is the sentence.
    print(f"switch-tf: error: {message.splitlines()[0]}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
