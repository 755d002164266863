"""The command line, `switch-tf COMMAND`: train, evaluate, predict, describe, convert, and what `--help` lists."""

import argparse
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from switch_tf import compat, startup
from switch_tf.cli import (
    cache,
    check,
    convert,
    describe,
    evaluate,
    experts,
    export,
    flags,
    predict,
    report,
    score,
    serve,
    study,
    tpu,
    train,
    vocabulary,
)
from switch_tf.errors import SettingError, sentence_inside

_EPILOG = """\
examples:
  switch-tf describe --gin_file=gin/models/switch_base_128.gin
  switch-tf train --gin_file=gin/models/switch_tiny_8.gin --gin_file=gin/runs/python_docs.gin \\
      --gin.MODEL_DIR='"runs/mine"' --gin.TRAIN_STEPS=500
  switch-tf predict --model_dir=runs/mine "The <extra_id_0> statement returns <extra_id_1> value."

An experiment is made of gin files: one from gin/models (which model), one from gin/runs (what to do with it), and
perhaps one from gin/layouts (on which devices). Later files override earlier ones, --gin.NAME=value overrides them all.
A string needs its own quotes inside of the shell's: --gin.MODEL_DIR='"runs/mine"'.
"""

# Each has add_parser(commands) and run(options); none imports TensorFlow before it runs, so that --help is fast.
_COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "score": score,
    "describe": describe,
    "report": report,
    "experts": experts,
    "vocabulary": vocabulary,
    "cache": cache,
    "study": study,
    "convert": convert,
    "export": export,
    "serve": serve,
    "check": check,
}
# These count or prepare something, and need no value for every macro that a run needs.
_INCOMPLETE = ("describe", "vocabulary")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="switch-tf",
        description="Train, evaluate and use Switch Transformers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS.values():
        command.add_parser(commands)
    jobs = commands.add_parser("tpu", help="submit, watch and resume jobs on Cloud TPUs")
    tpu.add_parsers(jobs.add_subparsers(dest="tpu_command", required=True, metavar="COMMAND"))
    return parser


def _load_configuration(options: argparse.Namespace, bindings: list[str]) -> None:
    from switch_tf.runs import gin_config
    from switch_tf.runs.model_directory import read_description

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
    gin_config.load(options.gin_file, bindings, options.gin_search_path, recorded)
    if options.command not in _INCOMPLETE:
        gin_config.check_required(but=("MODEL_DIR",) if options.command == "cache" else ())


def main(words: Sequence[str] | None = None) -> None:
    """Runs one command; exits with status 2 and one line for a user's mistake, 128 + n after signal n.

    Args:
      words: the command line; None for the program's, which ends the process too.
    """
    if words is None:
        _use_utf8()
        compat.end_process(_status_of_program())
    _run_command(words)


def _use_utf8() -> None:
    """Starts Python again where the locale has another encoding: TensorFlow, and all files of a run, are in UTF-8."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _status_of_program() -> int:
    """Runs the command of the program's own arguments; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # What its encoding cannot say is escaped.
            stream.reconfigure(errors="backslashreplace")
    status = 0
    try:
        status = _status_of_command(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # As `head` does, which has read enough.
        _forget_output()
        return status or 128 + signal.SIGPIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # Of a file, the command has said it itself.
            _forget_output()
            print(f"switch-tf: error: Standard output cannot be written ({error.strerror}).", file=sys.stderr)
            return 2
        traceback.print_exc()
        return 1
    return status


def _status_of_command(words: Sequence[str]) -> int:
    try:
        _run_command(words)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    return 0


def _forget_output() -> None:
    """Discards what standard output still holds, which would be written once more when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_command(words: Sequence[str]) -> None:
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            _fail(f"The argument {word!r} is no UTF-8 text.")
    bindings, others = flags.split_bindings(words)
    options = make_parser().parse_args(others)
    startup.prepare_libraries()
    try:
        if options.command == "tpu":
            tpu.COMMANDS[options.tpu_command](options, bindings)
        else:
            _run(options, bindings)
    except SettingError as error:
        _fail(str(error))


def _run(options: argparse.Namespace, bindings: list[str]) -> None:
    """Runs a command that needs TensorFlow, and turns what TensorFlow and gin say of a mistake into one sentence."""
    with startup.without_garbage_collection():
        startup.defer_imports()
        startup.import_tensorflow()
        import tensorflow as tf

        from switch_tf.runs import loop  # Registers everything that gin files bind.

    try:
        options.bindings = bindings
        if options.command not in ("report", "convert", "serve", "check"):
            _load_configuration(options, bindings)
        _COMMANDS[options.command].run(options)
    except loop.Stopped as stopped:
        print(str(stopped).splitlines()[0], file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except tf.errors.DataLossError as error:
        _fail(f"A file of the data is damaged: {error.message}")
    except tf.errors.OpError as error:
        sentence = sentence_inside(error) or _sentence_of_bucket(error) or _sentence_of_disk(error)
        if sentence is None:
            raise
        _fail(sentence)
    except OSError as error:
        sentence = _sentence_of_disk(error)
        if sentence is None:
            raise
        _fail(sentence)
    except UnicodeDecodeError as error:
        _fail(f"A file, or standard input, is no UTF-8 text ({error.reason}: byte {error.start}): convert it to UTF-8.")
    except RuntimeError as error:
        # What gin raises for a parameter that has no value.
        if not str(error).startswith("Required bindings"):
            raise
        _fail(str(error))


def _sentence_of_bucket(error: Exception) -> str | None:
    """Says what a bucket refused, and by which setting it was asked; None if the error is of something else."""
    from switch_tf import storage
    from switch_tf.runs import gin_config

    refusal = storage.refusal(error)
    if refusal is None:
        return None
    address = storage.address_in(error)
    setting = gin_config.macro_of_path(address) if address is not None else None
    return f"{setting or address}: {refusal}."


def _sentence_of_disk(error: Exception) -> str | None:
    """Says what a disk refused; None if the error is of something else."""
    from switch_tf import storage

    refusal = storage.refusal_of_disk(error)
    return f"A file cannot be read or written ({refusal})." if refusal is not None else None


def _fail(message: str) -> None:
    # gin adds lines about the call that failed; the first one is the sentence.
    print(f"switch-tf: error: {message.splitlines()[0]}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
