"""Serves a model that takes its time, until a signal.

python -m tests.programs.serve_fake_model SECONDS_PER_BATCH MAX_BATCH_SIZE MAX_WAITING
"""

import sys

from switch_tf.serving.server import Limits, serve
from tests.support.fake_model import FakeModel

if __name__ == "__main__":
    seconds, max_batch_size, max_waiting = sys.argv[1:]
    limits = Limits(int(max_batch_size), 0.005, int(max_waiting), max_request_bytes=10_000)
    serve(FakeModel(float(seconds)), "fake", "127.0.0.1", 0, limits)
