"""Writes data sets of TensorFlow Datasets from examples at hand, with the real builders and without a download.

For tests, benchmarks and the tables of docs/tasks.md.
"""

import contextlib
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds


def write_examples(
    data_dir: str, data_sets: Mapping[str, Mapping[str, Sequence[Any]]], num_files: int | None = None
) -> None:
    """Prepares data sets in `data_dir`.

    Args:
      data_dir: what TFDS_DATA_DIR would be.
      data_sets: name, configuration and version -> split -> raw examples.
      num_files: files of each split; None for the default of TensorFlow Datasets.
    """
    download = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=num_files)
    tfds.disable_progress_bar()
    for name, splits in data_sets.items():
        builder = tfds.builder(name, data_dir=data_dir)
        generators = {split: list(enumerate(examples)) for split, examples in splits.items()}
        builder._split_generators = lambda *_, generators=generators: generators
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=download)


def write_documents(name: str, folder: pathlib.Path, splits: Mapping[str, Sequence[str]], num_files: int) -> None:
    """Prepares a data set whose examples have a "text"; its other features are empty strings.

    Args:
      name: with its configuration and version.
      folder: what TFDS_DATA_DIR would be.
      splits: the documents of each split.
      num_files: files of each split.
    """
    empty = dict.fromkeys(tfds.builder(name, data_dir=str(folder)).info.features, "")
    examples = {split: [empty | {"text": text} for text in texts] for split, texts in splits.items()}
    write_examples(str(folder), {name: examples}, num_files)
