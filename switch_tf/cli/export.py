"""`switch-tf export`."""

import argparse

from switch_tf.cli import flags
from switch_tf.errors import SettingError

_FORMATS = ("saved_model", "stablehlo", "huggingface")
_EXAMPLES = """\
examples:
  switch-tf export --model_dir=runs/mine --output=exported
  switch-tf export --model_dir=runs/mine --output=exported --dtype=bfloat16 --gin.DECODER='"beam"'
  switch-tf export --model_dir=runs/mine --output=programs --format=stablehlo --gin.BATCH_SIZE=8
  switch-tf export --model_dir=runs/mine --output=mine --format=huggingface
"""


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = flags.add_with_examples(commands, "export", "write a model for use without this package", _EXAMPLES)
    flags.add_gin(parser)
    flags.add_model_dir(parser)
    parser.add_argument("--output", required=True, type=flags.path, metavar="DIR", help="the folder to write")
    parser.add_argument("--format", choices=_FORMATS, default="saved_model", help="default: %(default)s")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--lengths",
        type=_numbers,
        metavar="L,...",
        help="input lengths that get a graph of their own (default: 64 and TASK_FEATURE_LENGTHS['inputs'])",
    )
    parser.add_argument(
        "--batch_sizes",
        type=_numbers,
        metavar="B,...",
        help="batch sizes that get a graph of their own; a request may have any number of texts (default: 1,16)",
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers separated by commas") from error


def run(options: argparse.Namespace) -> None:
    """Writes the model and prints its size and the time that it took.

    Raises:
      SettingError: if there is no such checkpoint, or the output exists or cannot be written.
    """
    if options.format != "saved_model":
        for flag in ("lengths", "batch_sizes"):
            if getattr(options, flag) is not None:
                raise SettingError(f"--{flag} is for --format=saved_model: leave it out with {options.format}.")
    if options.format == "huggingface":
        _export_huggingface(options)
        return
    if options.format == "stablehlo":
        _export_stablehlo(options)
        return
    from switch_tf.runs import exporting

    sizes = options.batch_sizes or exporting.BATCH_SIZES
    request = exporting.ExportRequest(options.output, options.step, options.dtype, options.lengths, sizes)
    print(exporting.export_text_model(request), flush=True)


def _export_stablehlo(options: argparse.Namespace) -> None:
    """Writes programs of the batch and lengths of the gin configuration."""
    from switch_tf.runs.exporting_programs import export_programs

    if options.dtype != "float32":
        raise SettingError(f"--dtype={options.dtype} is not for --format=stablehlo, which writes float32.")
    print(export_programs(options.output, options.step), flush=True)


def _export_huggingface(options: argparse.Namespace) -> None:
    """Converts, as `switch-tf convert --to=huggingface` does."""
    from switch_tf.runs.exporting import path_of_checkpoint
    from switch_tf.runs.weight_conversion import Conversion, convert

    if options.model_dir is None:
        raise SettingError("--format=huggingface needs --model_dir.")
    source = options.model_dir
    if options.step is not None:
        source = path_of_checkpoint(source, options.step)
    convert(
        Conversion(
            source=source,
            target=options.output,
            target_kind="huggingface",
            dtype=options.dtype,
            gin_files=tuple(options.gin_file),
            bindings=tuple(options.bindings),
            search_paths=tuple(options.gin_search_path),
        )
    )
