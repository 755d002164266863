"""`switch-tf` on a host that loses power as soon as the checkpoint of a step is complete: `... STEP ARGUMENTS`."""

import os
import signal
import sys

from switch_tf.checkpoints.folder import CheckpointFolder
from switch_tf.cli import main as command_line

_complete = CheckpointFolder.complete


def main(step: str, *arguments: str) -> None:
    """Runs a command; `step` may be "never"."""

    def complete_and_die(self, number, *rest):
        _complete(self, number, *rest)
        if str(number) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    CheckpointFolder.complete = complete_and_die
    command_line.main(arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
