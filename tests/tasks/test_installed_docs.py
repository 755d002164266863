"""The text of installed packages: every docstring once, the same bytes for the same versions, no leak into training."""

import importlib.metadata
import json
from collections.abc import Iterator

import pytest

from switch_tf.errors import SettingError
from tasks import docstrings, installed_docs, vocabularies

SOURCE = b'''"""The module."""
class A:
    """The class."""
    if True:
        def f(self):
            """Its method,

            in two paragraphs.
            """
            async def g():
                "The inner function."
    else:
        def h(self): return "no docstring"
try:
    def i():
        """In a try."""
except ValueError:
    class B:
        """In a handler."""
'''
# Of docstrings.documents() where the versions of the lock file are installed, on Python 3.11.
VERSIONS = {
    "numpy": "2.4.6",
    "scipy": "1.17.1",
    "scikit-learn": "1.9.1",
    "pandas": "3.1.1",
    "tensorflow": "2.20.0",
    "keras": "3.15.1",
    "jax": "0.10.2",
    "transformers": "5.23.0",
}
DIGEST = "850207e11416427496b407ecb0524902a1e500926a4f5bf357e475f796c7ec12"


def test_docstrings_of_a_file_in_order():
    assert [text for text in docstrings.docstrings(SOURCE) if text] == [
        "The module.",
        "The class.",
        "Its method,\n\nin two paragraphs.",
        "The inner function.",
        "In a try.",
        "In a handler.",
    ]
    assert not list(docstrings.docstrings(b"def f(:")) and not list(docstrings.docstrings(b"\0"))


@pytest.fixture(scope="module")
def _cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def small_corpus(_cache, monkeypatch) -> Iterator[list[str]]:
    """The docstrings of keras alone, extracted into a folder of the tests' own."""
    monkeypatch.setenv(docstrings.CACHE_VARIABLE, _cache)
    monkeypatch.setattr(docstrings, "PACKAGES", {"keras": "keras"})
    installed_docs._texts.cache_clear()
    yield docstrings.documents()
    installed_docs._texts.cache_clear()


def test_extraction_is_done_once_and_gives_each_docstring_once(small_corpus, monkeypatch):
    assert len(small_corpus) == len(set(small_corpus)) > 1500
    assert all(len(text) >= docstrings.MIN_CHARACTERS for text in small_corpus)
    assert any(text.startswith("Just your regular densely-connected NN layer.") for text in small_corpus)
    (file,) = docstrings.cache_path().parent.iterdir()
    assert file == docstrings.cache_path() and json.loads(file.read_text()) == small_corpus
    monkeypatch.setattr(docstrings, "extract", lambda: pytest.fail("extracted again"))
    assert docstrings.documents() == small_corpus


def test_held_out_documents_are_a_hundredth_and_never_trained_on(small_corpus):
    train, held_out = (
        {example["text"] for example in installed_docs.installed_docs(split, False).as_numpy_iterator()}
        for split in ("train", "validation")
    )
    assert not train & held_out and len(train) + len(held_out) == len(small_corpus)
    assert 0.003 < len(held_out) / len(train) < 0.02


def test_order_follows_the_seed_and_changes_from_epoch_to_epoch(small_corpus):
    def first(seed):
        dataset = installed_docs.installed_docs("validation", True, seed).repeat(2)
        return [example["text"] for example in dataset.as_numpy_iterator()]

    texts = first(0)
    assert texts == first(0) != first(1)
    half = len(texts) // 2
    assert texts[:half] != texts[half:] and sorted(texts[:half]) == sorted(texts[half:])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(docstrings, "PACKAGES", {"no-such-package": "nothing"})
    with pytest.raises(SettingError, match="pip install no-such-package"):
        docstrings.versions()


def test_the_vocabulary_fits_the_models(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabularies, "_selected_file", None)
    installed_docs.InstalledDocsVocabulary().install(str(tmp_path))
    assert vocabularies.RunVocabulary().vocab_size == 1024


@pytest.mark.slow
def test_the_same_versions_give_the_same_bytes():
    installed = {name: importlib.metadata.version(name) for name in VERSIONS}
    if installed != VERSIONS:
        pytest.skip("other versions than the lock file's are installed")
    assert docstrings.digest(docstrings.documents()) == DIGEST
