"""`switch-tf convert`."""

import argparse
import contextlib
import signal
from collections.abc import Iterator

from switch_tf.cli import flags

_SOURCES = ("huggingface", "t5x", "mesh_tensorflow", "switch_tf")
_TARGETS = ("switch_tf", "huggingface", "t5x")
_FAMILIES = ("switch_transformers", "t5", "mt5")
_EXAMPLES = """\
examples:
  switch-tf convert switch-base-8 runs/switch_base_8             from a Hugging Face directory
  switch-tf convert --to=huggingface runs/finetuned mine         and back
  switch-tf convert --upcycle --gin.NUM_EXPERTS=32 t5-base runs/sparse
  switch-tf convert --to_dense=mean runs/sparse runs/dense

FROM is a Hugging Face directory, checkpoint_N of T5X, a bundle of Mesh TensorFlow (model.ckpt-N), or a model directory
of switch_tf. Settings of the model (--gin.DROPOUT_RATE=0.1) go into the config.gin of the model directory made.
"""


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = flags.add_with_examples(
        commands, "convert", "bring weights from Hugging Face, T5X or Mesh TensorFlow, and take them back", _EXAMPLES
    )
    parser.add_argument("source", type=flags.path, metavar="FROM", help="a checkpoint, recognized by what is in it")
    parser.add_argument("target", type=flags.path, metavar="TO", help="the folder to make")
    parser.add_argument("--from", dest="source_kind", choices=_SOURCES, help="what FROM is (default: recognized)")
    parser.add_argument("--to", dest="target_kind", choices=_TARGETS, default="switch_tf", help="default: %(default)s")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights in TO (default: %(default)s)",
    )
    parser.add_argument("--family", choices=_FAMILIES, help="of a Hugging Face directory (default: by the model)")
    parser.add_argument(
        "--shard_gb", type=float, default=5.0, metavar="GB", help="size of its files at most (default: %(default)s)"
    )
    parser.add_argument(
        "--vocabulary", type=flags.path, metavar="FILE", help="a SentencePiece model (default: the one beside FROM)"
    )
    parser.add_argument("--slots", action="store_true", help="keep Adafactor's slots, between T5X and switch_tf")
    parser.add_argument("--upcycle", action="store_true", help="make each expert a copy of FROM's dense layer")
    parser.add_argument(
        "--noise", type=float, default=0.0, metavar="X", help="of --upcycle: add X standard deviations to each expert"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --upcycle: of routers and noise (default: %(default)s)")
    parser.add_argument("--to_dense", metavar="mean|N", help="make a dense model: of the mean, or of expert N alone")
    flags.add_gin(parser)


def run(options: argparse.Namespace) -> None:
    """Converts a checkpoint, one tensor (of experts: one expert) at a time.

    Raises:
      SettingError: if FROM cannot be read, TO cannot be written, or one has no counterpart of the other.
    """
    from switch_tf.runs.weight_conversion import Conversion, convert

    with _signals_unwind_the_stack():
        convert(
            Conversion(
                source=options.source,
                target=options.target,
                source_kind=options.source_kind,
                target_kind=options.target_kind,
                dtype=options.dtype,
                family=options.family,
                shard_bytes=round(options.shard_gb * 1e9),
                vocabulary=options.vocabulary,
                with_slots=options.slots,
                upcycle=options.upcycle,
                noise=options.noise,
                seed=options.seed,
                to_dense=options.to_dense,
                gin_files=tuple(options.gin_file),
                bindings=tuple(options.bindings),
                search_paths=tuple(options.gin_search_path),
            )
        )


@contextlib.contextmanager
def _signals_unwind_the_stack() -> Iterator[None]:
    """Inside of it SIGTERM and Ctrl-C raise `SystemExit`, so that nothing unfinished is left behind."""

    def stop(number: int, frame: object) -> None:
        del frame
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
