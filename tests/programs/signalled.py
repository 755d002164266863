"""`switch-tf` that gets signals at a moment: `... MOMENT SIGNAL,SIGNAL ARGUMENTS`.

Moments: "start" (the vocabulary is installed), "compile" (the first update begins), "evaluation", "save" (the second
checkpoint is being written by its thread).
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from switch_tf.checkpoints import tensor_bundle
from switch_tf.cli import main as command_line
from switch_tf.runs import hooks, loop
from switch_tf.runs.experiment import Experiment


def before(function: Callable, numbers: Sequence[int], call: int = 1) -> Callable:
    """A function that sends the signals to this process before its n-th call."""
    calls = []

    def signal_and_call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.2)  # Two at once are one to the system.
        return function(*arguments, **options)

    return signal_and_call


def main(moment: str, names: str, *arguments: str) -> None:
    """Runs a command."""
    # A shell ignores SIGINT for what it starts in the background, pytest included.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    numbers = [signal.Signals[name] for name in names.split(",")]
    make_update, make_evaluator = loop.make_update, hooks.make_evaluator
    if moment == "start":
        Experiment.install_vocabulary = before(Experiment.install_vocabulary, numbers)
    elif moment == "compile":
        loop.make_update = lambda *given: before(make_update(*given), numbers)
    elif moment == "evaluation":
        hooks.make_evaluator = lambda *given: before(make_evaluator(*given), numbers)
    else:
        tensor_bundle.write_shards = before(tensor_bundle.write_shards, numbers, call=2)
    sys.argv[1:] = arguments
    command_line.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
