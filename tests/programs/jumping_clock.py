"""`switch-tf` where the clock jumps by a day at each look, forward or back: `... ARGUMENTS`."""

import itertools
import time

from switch_tf.cli import main as command_line

_DAY = 86_400.0
_time = time.time
_jumps = itertools.cycle((0, _DAY, -_DAY, 7 * _DAY))

if __name__ == "__main__":
    time.time = lambda: _time() + next(_jumps)
    command_line.main()
