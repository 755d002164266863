"""Tiny data sets of TensorFlow Datasets, and a vocabulary of their text, for all tests of the tasks."""

import pathlib

import pytest
import seqio

from tasks import vocabularies
from tests.support import tiny_tfds


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> str:
    """Writes every data set once; every registered task reads them from then on. Returns the folder."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    tiny_tfds.write(folder)
    tiny_tfds.use(folder)
    return folder


@pytest.fixture(scope="session")
def _tiny_model(tmp_path_factory) -> str:
    path: pathlib.Path = tmp_path_factory.mktemp("vocabulary") / "sentencepiece.model"
    path.write_bytes(vocabularies.train_sentencepiece(tiny_tfds.texts(), 400))
    return str(path)


@pytest.fixture
def tiny_vocabulary(_tiny_model, monkeypatch) -> seqio.Vocabulary:
    """Selects a vocabulary trained on the text of the tiny data sets."""
    monkeypatch.setattr(vocabularies, "_selected_file", None)
    vocabularies.select_vocabulary(_tiny_model)
    return vocabularies.RunVocabulary()
