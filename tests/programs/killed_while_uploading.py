"""`switch-tf` that is killed when the shards of step 6's checkpoint are in the bucket: `... ARGUMENTS`.

They have not been merged, and there is no manifest.
"""

import os
import signal

from switch_tf.checkpoints import tensor_bundle
from switch_tf.cli import main as command_line

_merge_shards = tensor_bundle.merge_shards


def _merge_or_die(prefix: str, num_processes: int) -> None:
    if "step_00000006" in prefix:
        os.kill(os.getpid(), signal.SIGKILL)
    _merge_shards(prefix, num_processes)


if __name__ == "__main__":
    tensor_bundle.merge_shards = _merge_or_die
    command_line.main()
