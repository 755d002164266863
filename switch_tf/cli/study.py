"""`switch-tf study`."""

import argparse
import sys

from switch_tf.cli import flags

_EXAMPLES = """\
examples:
  switch-tf study gin/studies/experts.gin --jobs=2
  switch-tf study gin/studies/experts.gin --gin.Study.seeds='[0]' --gin.Study.folder='"runs/one_seed"'
  switch-tf study gin/studies/experts.gin --print | xargs -P 8 -I {} sh -c '{}'

A study that was cut off resumes when the same command is given again; runs that are done are skipped.
"""


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = flags.add_with_examples(
        commands, "study", "train variants of an experiment with several seeds, and compare them", _EXAMPLES
    )
    parser.add_argument("gin_file", nargs=1, metavar="STUDY.gin", help="what to run: a file of gin/studies")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time, each on a core of its own (default: 1)"
    )
    parser.add_argument(
        "--print", action="store_true", help="print the command of each run that can be trained now, and train nothing"
    )
    parser.add_argument("--report", action="store_true", help="train nothing, and report the runs that are done")
    parser.add_argument(
        "--gin.NAME", dest="gin_binding", metavar="VALUE", help="set a parameter of the study; repeatable"
    )
    parser.set_defaults(gin_search_path=[])


def run(options: argparse.Namespace) -> None:
    """Trains what is not done, prints the table, and writes CSV files and plots."""
    from switch_tf.report import study_tables
    from switch_tf.runs import study

    chosen = study.Study()
    runs = chosen.runs()
    if options.print:
        ready = study.ready_runs(runs)
        print("\n".join(run.command() for run in ready))
        waiting = sum(not run.is_done() for run in runs) - len(ready)
        if waiting:
            print(f"{waiting} more start from these; print again when these are done.", file=sys.stderr)
        return
    if not options.report:
        study.train_runs(runs, options.jobs)
    study_tables.write_report(chosen, runs)
