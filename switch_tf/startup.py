"""How a command starts: libraries are set up, and imports wait until something needs them, or are left out."""

import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading
import types
from collections.abc import Iterator, Sequence

from switch_tf import compat

# What Keras (wrappers, plots, arrays) and TensorFlow Lite (a converter) import where it is installed and do without
# where it is not. Half of the time of `import tensorflow` is theirs.
_OPTIONAL = frozenset({"jax", "matplotlib", "pandas", "scipy", "sklearn"})
# Packages whose own code waits until it is needed. t5's imports its metrics, and with them scipy, scikit-learn, pandas
# and nltk, when only t5.data.preprocessors is asked for; seqio's imports JAX and Flax, which a command that reads no
# data does without, and PyGlove, which one kind of mixture needs.
_DEFERRED = frozenset({"pyglove", "seqio", "t5", "t5.data", "t5.evaluation"})
_running = threading.RLock()
_in_progress: set[str] = set()


class _NotInstalled(importlib.abc.MetaPathFinder):
    """Hides packages from what is imported."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> None:
        if fullname.partition(".")[0] in _OPTIONAL:
            raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)


class _Deferred(types.ModuleType):
    """A package that runs its code when something else than one of its submodules is looked up in it.

    `importlib.util.LazyLoader` would run that of t5 as soon as t5.data.preprocessors is imported, which looks up where
    t5 is.
    """

    def __getattr__(self, name: str) -> object:
        submodule = f"{self.__name__}.{name}"
        if importlib.util.find_spec(submodule) is not None:
            return importlib.import_module(submodule)
        with _running:  # Another thread waits until the package is whole.
            # Looked up by what the package itself imports: as in any that is half imported, it is not there yet.
            if type(self) is _Deferred and self.__name__ not in _in_progress:
                self._run()
        return object.__getattribute__(self, name)

    def _run(self) -> None:
        name, before, spec = self.__name__, dict(self.__dict__), self.__spec__
        assert spec is not None and spec.loader is not None
        _in_progress.add(name)
        try:
            spec.loader.exec_module(self)
        except Exception as error:
            self.__dict__.clear()
            self.__dict__.update(before)
            if isinstance(error, ImportError):
                raise
            # `hasattr` and `from package import name` would take an AttributeError for an answer.
            raise ImportError(f"{name}: {error}") from error
        finally:
            _in_progress.remove(name)
        self.__class__ = types.ModuleType  # type: ignore[assignment]  # Its own class again.


class _DeferringLoader(importlib.abc.Loader):
    """Makes a package of its loader that has run no code yet."""

    def __init__(self, loader: importlib.abc.Loader):
        self._loader = loader

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        module.__class__ = _Deferred


class _Deferring(importlib.abc.MetaPathFinder):
    """Finds the packages that are deferred."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _DEFERRED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeferringLoader(spec.loader)
        return spec


def prepare_libraries() -> None:
    """Sets what TensorFlow and JAX read when they are loaded, and how the process keeps memory; comes before both."""
    # TensorFlow tells every CPU user that it found no GPU, at the level of errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # oneDNN's matmuls take half of the time of Eigen's or less, on processors too for which TensorFlow leaves them out.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Without a cache, TensorFlow fetches 64 MB from a bucket for every tensor of a checkpoint that it reads.
    os.environ.setdefault("GCS_READ_CACHE_BLOCK_SIZE_MB", "32")
    os.environ.setdefault("GCS_READ_CACHE_MAX_SIZE_MB", "512")
    # seqio imports JAX, which would take the TPU, or look for one where libtpu is installed: TensorFlow is to have it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    compat.keep_freed_memory()
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)


def defer_imports() -> None:
    """Lets seqio, t5 and PyGlove run their code when it is needed, from the next import of them on."""
    if not any(isinstance(finder, _Deferring) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Deferring())


def import_tensorflow() -> None:
    """Imports TensorFlow as if the packages that it can do without were not installed; they can be imported later."""
    finder = _NotInstalled()
    sys.meta_path.insert(0, finder)
    try:
        import tensorflow as tf

        tf.keras  # noqa: B018 (a module that is imported when it is first looked at)
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Within it, the garbage collector rests, and what has been made by then is not searched afterwards either.

    Imports make a million objects, which stay: searching them again and again takes a fifth of the time of the imports.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
