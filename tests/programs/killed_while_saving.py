"""`switch-tf` that is killed while it writes the tensors of step 9's checkpoint: `... ARGUMENTS`.

Half of the data are on the disk, and no manifest.
"""

import os
import signal
from collections.abc import Sequence

from switch_tf.checkpoints import tensor_bundle
from switch_tf.cli import main as command_line

_write_shards = tensor_bundle.write_shards


def _write_half(prefix: str, process: int, shards: Sequence[tensor_bundle.Shard]) -> None:
    _write_shards(prefix, process, shards)
    if "step_00000009" in prefix:
        data = prefix + ".part_00000.data-00000-of-00001"
        os.truncate(data, os.path.getsize(data) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    tensor_bundle.write_shards = _write_half
    command_line.main()
