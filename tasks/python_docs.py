"""Text that every Python installation has: the documentation topics and the docstrings of the standard library.

About 2.3 million characters of technical English, read from the Python that runs this; nothing is downloaded. Enough to
see a small model learn, too little for a good one.
"""

import ast
import builtins
import functools
import inspect
import pathlib
import pydoc_data.topics
import sysconfig
import warnings
import zlib
from collections.abc import Iterator

import seqio
import tensorflow as tf

from tasks.pretraining import add_span_corruption_task

MIN_CHARACTERS = 40
# One document in this many is held out.
HELD_OUT_EVERY = 20
_SKIPPED_FOLDERS = frozenset({"test", "tests", "site-packages", "dist-packages", "idle_test", "__pycache__"})


def _docstrings_of_files(folder: pathlib.Path) -> Iterator[str]:
    """Reads docstrings from source text: `python -OO` strips them from modules."""
    for path in sorted(folder.rglob("*.py")):
        if _SKIPPED_FOLDERS & set(path.relative_to(folder).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # Some packages contain invalid or old Python on purpose, as test data.
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def _docstrings_of_builtins() -> Iterator[str]:
    for _, thing in sorted(vars(builtins).items()):
        yield inspect.getdoc(thing) or ""
        if inspect.isclass(thing):
            for _, member in sorted(vars(thing).items()):
                yield inspect.getdoc(member) or ""


@functools.lru_cache(maxsize=1)
def documents() -> tuple[str, ...]:
    """Returns every document once, in an order that depends only on the Python version."""
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    texts += _docstrings_of_files(pathlib.Path(sysconfig.get_paths()["stdlib"]))
    texts += _docstrings_of_builtins()
    return tuple(dict.fromkeys(text.strip() for text in texts if len(text.strip()) >= MIN_CHARACTERS))


def is_held_out(document: str) -> bool:
    """Whether a document belongs to the validation split: decided by its own text, independent of other documents."""
    return zlib.crc32(document.encode()) % HELD_OUT_EVERY == 0


def python_docs(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Returns {"text": string} examples of a split ("train" or "validation")."""
    chosen = [text for text in documents() if is_held_out(text) == (split == "validation")]
    dataset = tf.data.Dataset.from_tensor_slices({"text": tf.constant(chosen, tf.string, shape=[len(chosen)])})
    return dataset.shuffle(max(1, len(chosen)), seed=seed) if shuffle_files else dataset


add_span_corruption_task(
    "python_docs_span_corruption",
    seqio.FunctionDataSource(python_docs, splits=["train", "validation"]),
)
