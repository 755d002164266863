"""Registers the task that seqio's Beam job caches; TEXT_TASK names it, TEXT_FOLDER has its text and vocabulary."""

import os

from tasks import vocabularies
from tasks.pretraining import add_span_corruption_task, text_files

_folder = os.environ["TEXT_FOLDER"]
vocabularies.select_vocabulary(f"{_folder}/vocabulary")
add_span_corruption_task(
    os.environ["TEXT_TASK"],
    text_files({"train": f"{_folder}/train-*.txt", "validation": f"{_folder}/held-out.txt"}),
)
