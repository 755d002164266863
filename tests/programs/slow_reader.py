"""Trains on JSON lines of which one is bad, with a reader that is slow: it must end, with the error."""

import sys
import time

from switch_tf.cli import main as command_line
from switch_tf.data import text_files

SECONDS_PER_LINE = 0.02

if __name__ == "__main__":
    parse = text_files._texts_of_json

    def slow_parse(file, first, lines, key):
        time.sleep(SECONDS_PER_LINE * len(lines))
        return parse(file, first, lines, key)

    text_files._texts_of_json = slow_parse
    sys.argv[0] = "switch-tf"
    command_line.main()
