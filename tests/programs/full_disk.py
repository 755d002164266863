"""`switch-tf` that cannot write more than 150 kB to a file: `... ARGUMENTS`.

The kernel then refuses to write as it does when a disk is full: with an error from `write`.
"""

import resource

from switch_tf.cli import main as command_line

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
    command_line.main()
