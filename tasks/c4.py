"""C4 (Raffel et al. 2020, Sec. 2.2), the corpus of the paper's English models, from TFDS or from the hub's files."""

import os

import gin

from switch_tf.data.text_files import Patterns
from switch_tf.errors import SettingError
from tasks.files import SPLITS, ConfiguredFiles
from tasks.pretraining import add_span_corruption_task
from tasks.tfds_source import PreparedTfds, same_splits

TFDS_NAME = "c4/en:3.1.0"


@gin.configurable
def c4_files(folder: str | None = None) -> dict[str, Patterns]:
    """Names the files of C4 as the public hub distributes them: an object on each line, gzipped.

    Args:
      folder: which holds `c4-train.00000-of-01024.json.gz` and the others; local or in a bucket.

    Returns:
      A pattern for each split.

    Raises:
      SettingError: if no folder is given.
    """
    if folder is None:
        raise SettingError("c4_files_span_corruption needs C4_FOLDER, the folder of the json.gz files.")
    return {
        "train": os.path.join(folder, "c4-train.*.json.gz"),
        "validation": os.path.join(folder, "c4-validation.*.json.gz"),
    }


_tfds = PreparedTfds(
    TFDS_NAME,
    same_splits("train", "validation"),
    ", a Beam job over Common Crawl, or take the hub's json.gz files (docs/data.md)",
)
add_span_corruption_task("c4_span_corruption", _tfds)
# Named like t5's `c4_v220_span_corruption`, which reads a version that TFDS no longer generates.
add_span_corruption_task("c4_v310_span_corruption", _tfds)
add_span_corruption_task("c4_files_span_corruption", ConfiguredFiles(c4_files, dict.fromkeys(SPLITS, "C4_FOLDER")))
