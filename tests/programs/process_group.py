"""A process of a group: `... ACTION`; the environment says which one of which group it is.

Actions: `report` prints what it hears in four rounds; `wait` prints "here" and waits to be killed; `fail` ends with an
error of its own, each process a second after the one before; `agree` prints what the first process has broadcast.
"""

import sys
import time

from switch_tf.partitioning.processes import Processes


def report(processes: Processes) -> None:
    """In round n only process n says True."""
    print([processes.any_process(processes.index == step) for step in range(4)])
    processes.close()


def wait(processes: Processes) -> None:
    """Waits for longer than any test does."""
    processes.any_process(False)
    print("here", flush=True)
    time.sleep(600)


def fail(processes: Processes) -> None:
    """Ends with status 1."""
    processes.any_process(False)
    time.sleep(processes.index)
    sys.exit("mine")


def agree(processes: Processes) -> None:
    """The first process broadcasts two numbers; the others have fewer, and other ones."""
    print(processes.broadcast_from_first([processes.index, 7][: 2 - processes.index]))
    processes.close()


ACTIONS = {"report": report, "wait": wait, "fail": fail, "agree": agree}

if __name__ == "__main__":
    members = Processes.from_environment()
    members.connect(timeout=20)
    ACTIONS[sys.argv[1]](members)
