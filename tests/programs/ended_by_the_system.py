"""A process that ends as one does when the system is out of memory."""

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
