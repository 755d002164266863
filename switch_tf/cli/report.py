"""`switch-tf report`."""

import argparse

from switch_tf.cli import flags


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = commands.add_parser("report", help="compare model directories: report.html, a table, plots")
    parser.add_argument(
        "model_dirs", nargs="+", type=flags.path, metavar="MODEL_DIR", help="model directories that `train` made"
    )
    parser.add_argument(
        "--output", default=".", type=flags.path, metavar="FOLDER", help="where the plots go (default: %(default)s)"
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="the run that speed-ups compare with (default: the first dense one)"
    )


def run(options: argparse.Namespace) -> None:
    """Writes the page, prints the table and writes the plots."""
    from switch_tf.report import comparison, run_report
    from switch_tf.report.run_records import read_run

    runs = [read_run(model_dir) for model_dir in options.model_dirs]
    print(f"Wrote {run_report.write_report(runs, options.output, options.baseline)}.")
    comparison.compare(runs, options.output)
