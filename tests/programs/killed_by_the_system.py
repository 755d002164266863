"""A process that is killed, as by a system that runs out of memory."""

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
