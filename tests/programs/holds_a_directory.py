"""Holds a model directory until it is killed; says so first."""

import sys
import time

from switch_tf.runs.directory_lock import held

if __name__ == "__main__":
    with held(sys.argv[1]):
        print(1, flush=True)
        time.sleep(600)
