"""Docstrings of installed packages, extracted once into a cache folder by several processes.

`python -m tasks.docstrings` extracts them before the first run does.

This module imports neither TensorFlow nor seqio: each worker process starts in milliseconds.
"""

import ast
import concurrent.futures
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence

import tqdm

from switch_tf.errors import SettingError

# Distributions with long docstrings that the lock file pins; each one's import package.
PACKAGES: Mapping[str, str] = {
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "pandas": "pandas",
    "tensorflow": "tensorflow",
    "keras": "keras",
    "jax": "jax",
    "transformers": "transformers",
}
MIN_CHARACTERS = 40
CACHE_VARIABLE = "SWITCH_TF_CACHE"
_SKIPPED_FOLDERS = frozenset({"test", "tests", "_vendor"})
_FILES_PER_CALL = 32
# The fields of a statement that hold further statements, in the order of the source.
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(source: bytes) -> Iterator[str]:
    """Yields every docstring of a Python source file, in the order of the source.

    Args:
      source: of one file; nothing is yielded where it is not valid Python.

    Yields:
      The docstring without its indentation.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, _DOCUMENTED):
            yield (ast.get_docstring(node) or "").strip()
        for name in reversed(_BLOCKS):
            pending.extend(reversed(getattr(node, name, [])))


def versions() -> dict[str, str]:
    """Returns the installed version of each distribution in `PACKAGES`.

    Raises:
      SettingError: if one is not installed.
    """
    found = {}
    for distribution in PACKAGES:
        # tensorflow-tpu provides the same package on a TPU machine.
        names = [distribution, "tensorflow-tpu"] if distribution == "tensorflow" else [distribution]
        for name in names:
            try:
                found[distribution] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
        else:
            raise SettingError(f"The docstrings of {distribution} are part of this corpus: pip install {distribution}.")
    return found


def cache_path() -> pathlib.Path:
    """Returns the corpus file of the installed versions, in $SWITCH_TF_CACHE or ~/.cache/switch_tf."""
    folder = os.environ.get(CACHE_VARIABLE) or pathlib.Path.home() / ".cache" / "switch_tf"
    key = json.dumps([versions(), MIN_CHARACTERS, sys.version_info[:2]]).encode()
    return pathlib.Path(folder) / f"installed_docs-{hashlib.sha256(key).hexdigest()[:12]}.json"


def _source_files() -> list[pathlib.Path]:
    files = []
    for package in PACKAGES.values():
        # Not imported: importing all of them takes longer than reading them.
        root = next(folder for folder in map(pathlib.Path, sys.path) if (folder / package / "__init__.py").is_file())
        found = (root / package).rglob("*.py")
        files += sorted(path for path in found if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    return files


def _docstrings_of_files(paths: Sequence[pathlib.Path]) -> list[str]:
    return [text for path in paths for text in docstrings(path.read_bytes()) if len(text) >= MIN_CHARACTERS]


def extract() -> list[str]:
    """Reads all source files of `PACKAGES` with one process per core, and shows the progress.

    Returns:
      Every docstring of `MIN_CHARACTERS` or more once, in the order of their digests: the first documents are a sample
      of all packages.
    """
    files = _source_files()
    chunks = [files[start : start + _FILES_PER_CALL] for start in range(0, len(files), _FILES_PER_CALL)]
    # TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        results = list(
            tqdm.tqdm(
                pool.map(_docstrings_of_files, chunks), total=len(chunks), desc="extracting docstrings", leave=False
            )
        )
    unique = {text for texts in results for text in texts}
    return sorted(unique, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())


def documents() -> list[str]:
    """Returns the corpus, from the cache if it has been extracted there."""
    path = cache_path()
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    texts = extract()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another run may extract the same text at the same time: each writes a file of its own and renames it.
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(texts), encoding="utf-8")
    unfinished.replace(path)
    return texts


def digest(texts: Sequence[str]) -> str:
    """Returns the SHA-256 of a corpus: the same wherever the same versions are installed."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


if __name__ == "__main__":
    corpus = documents()
    print(f"{len(corpus):,} documents, {sum(map(len, corpus)) / 1e6:.1f} million characters: {cache_path()}")
