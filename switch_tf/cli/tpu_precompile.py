"""`switch-tf tpu precompile`: compiles a step for a TPU slice, without a TPU, and prints what it needs."""

import argparse
import json
import sys

from switch_tf.cli import flags

_EXAMPLES = """\
examples:
  switch-tf tpu precompile --gin_file=gin/models/switch_base_128.gin --gin_file=gin/runs/pretrain.gin \\
      --gin_file=gin/precision/selective.gin --layout=gin/layouts/v3_32.gin --topology=v3-32
  switch-tf tpu precompile ... --topology=v4:4x4x8 --gin.MESH_SHAPE='"data:16,model:8"' --json
  switch-tf tpu precompile ... --topology=v5e:4x8 --step=decode --gin.BATCH_SIZE=256

The exit status is 0 if the step fits into the devices' memory and 1 if it does not. docs/tpu.md explains the report.
"""


def add_parser(commands: flags.Commands) -> None:
    """Adds `precompile` under `switch-tf tpu`.

    Args:
      commands: what `add_subparsers` returned.
    """
    parser = flags.add_with_examples(
        commands,
        "precompile",
        "compile a step without a TPU: does it fit, which collectives, how fast at best",
        _EXAMPLES,
    )
    flags.add_gin(parser)
    flags.add_json(parser)
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="the slice: v4-256 (Cloud TPU) or v4:4x4x8 (the compiler)"
    )
    parser.add_argument(
        "--layout", type=flags.path, metavar="FILE", help="a gin file with the mesh, read after every --gin_file"
    )
    parser.add_argument(
        "--step",
        choices=("train", "evaluate", "decode"),
        default="train",
        help="which step to compile (default: %(default)s); `decode` is greedy decoding of a batch, encoder included",
    )
    parser.add_argument(
        "--effort",
        choices=("full", "low"),
        default="full",
        help="low: compile faster and in half the host memory; the program is slower, with more collectives "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--hlo", type=flags.path, metavar="FILE", help="write the optimized program of one device there, as HLO text"
    )


def run(options: argparse.Namespace, bindings: list[str]) -> None:
    """Compiles and prints the report; exits with status 1 if the step does not fit.

    Args:
      options: of the command line.
      bindings: `NAME = value` lines of --gin.NAME=value.

    Raises:
      SettingError: if the experiment, the mesh or the topology is wrong, or the compiler is not installed or failed.
    """
    from tpu.precompile.pipeline import precompile

    report = precompile(
        [*options.gin_file, *([options.layout] if options.layout else [])],
        bindings,
        options.gin_search_path,
        options.step,
        options.topology,
        options.effort,
        options.hlo,
    )
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        from tpu.precompile.report import report_text

        print(report_text(report))
    if not report["fits"]:
        sys.exit(1)
