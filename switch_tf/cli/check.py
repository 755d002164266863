"""`switch-tf check`."""

import argparse
import json
import sys

from switch_tf.cli import flags


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = commands.add_parser(
        "check", help="verify a model directory: checksums of all tensors, CSV files, vocabulary"
    )
    parser.add_argument("directory", type=flags.path, metavar="MODEL_DIR", help="a model directory that `train` made")
    flags.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Prints a table of all that was read, or one JSON object; status 1 if anything is damaged."""
    from tabulate import tabulate

    from switch_tf.runs.verification import verify

    findings = verify(options.directory)
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        rows = [[each.name, "DAMAGED" if each.fault else "good", each.fault or each.contents] for each in findings]
        print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    if any(finding.fault for finding in findings):
        sys.exit(1)
