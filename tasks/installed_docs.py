"""Docstrings of the packages that this project installs: 31 million characters of technical English and code.

Nothing is downloaded. The first use extracts the text into a cache folder (`tasks/docstrings.py`; a minute on two
cores). The same versions give the same bytes: the corpus of the paper's studies in small, docs/studies.md.
"""

import functools
import pathlib
import zlib

import gin
import seqio
import tensorflow as tf

from tasks import docstrings
from tasks.pretraining import add_span_corruption_task
from tasks.vocabularies import VocabularyFile

# One document in so many is held out.
HELD_OUT_EVERY = 100


def is_held_out(document: str) -> bool:
    """Whether a document belongs to the validation split: by its own text, so that no other document matters."""
    return zlib.crc32(document.encode()) % HELD_OUT_EVERY == 0


@functools.lru_cache(maxsize=2)
def _texts(split: str) -> tf.Tensor:
    chosen = [text for text in docstrings.documents() if is_held_out(text) == (split == "validation")]
    return tf.constant(chosen, tf.string)


def installed_docs(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Returns {"text": string} examples of a split ("train" or "validation")."""
    texts = _texts(split)
    count = texts.shape[0]
    indices = tf.data.Dataset.range(count)
    if shuffle_files:
        # Indices rather than texts: the shuffle buffer is part of each checkpoint.
        indices = indices.shuffle(count, seed=seed)
    return indices.map(lambda index: {"text": tf.gather(texts, index)})


_SOURCE = seqio.FunctionDataSource(installed_docs, splits=["train", "validation"])

add_span_corruption_task("installed_docs_span_corruption", _SOURCE)
# Half of the tokens in spans of 12 on average, the kind of denoising that UL2 (Tay et al. 2022) calls extreme: four
# times as many target tokens for each input token, and a decoder that has sentences to write. Small models learn more
# from the same number of FLOPs.
add_span_corruption_task("installed_docs_long_spans", _SOURCE, noise_density=0.5, mean_span_length=12.0)


@gin.configurable
class InstalledDocsVocabulary(VocabularyFile):
    """The vocabulary that comes with this corpus: 924 pieces, 1,024 ids with the sentinels.

    Made by `switch-tf vocabulary --task=installed_docs_span_corruption --num_pieces=924 --max_characters=3000000`.
    """

    def __init__(self) -> None:
        super().__init__(str(pathlib.Path(__file__).with_name("installed_docs.model")))
