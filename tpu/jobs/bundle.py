"""The bundle that a job's hosts download from its bucket: code, pinned versions, and the experiment."""

import gzip
import hashlib
import importlib.metadata
import io
import pathlib
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence

from switch_tf.errors import SettingError
from tpu.jobs.object_store import Storage
from tpu.jobs.record import FOLDER

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_DISTRIBUTION = "switch-tf"
# The parts of a checkout that setup.py needs.
_SOURCES = ("setup.py", "pyproject.toml", "README.md", "switch_tf", "tasks", "tpu", "gin")
EXPERIMENT, CONSTRAINTS, MODULES = "experiment.gin", "constraints.txt", "modules.tar.gz"


class Bundle:
    """Files to upload.

    Attributes:
      contents: the bytes of each file, by name.
      folder: where they go, relative to the model directory; its name contains a digest of the contents.
    """

    def __init__(self, experiment: str, code: str | None = None, modules: Sequence[str] = ()):
        """Packs the files.

        Args:
          experiment: the whole configuration, as one gin file.
          code: a checkout, or an archive that pip can install; None for the code of this process.
          modules: Python files and folders that the gin file imports.

        Raises:
          SettingError: if a file does not exist or is of the wrong kind.
        """
        archive, packed, constraints = _code(code)
        self.contents = {f"code/{archive}": packed, CONSTRAINTS: constraints, EXPERIMENT: experiment.encode()}
        if modules:
            self.contents[MODULES] = _tar(_modules(modules))
        digest = hashlib.sha256()
        for name, data in sorted(self.contents.items()):
            digest.update(f"{name} {len(data)}\n".encode() + data)
        self.folder = f"{FOLDER}/files-{digest.hexdigest()[:12]}"

    def upload(self, storage: Storage) -> None:
        """Uploads the files that are not in the folder yet; files there never change, as its name is their digest."""
        uploaded = set(storage.names(self.folder + "/"))
        for name, data in self.contents.items():
            if f"{self.folder}/{name}" not in uploaded:
                storage.write(f"{self.folder}/{name}", data)


def _existing(setting: str, name: str) -> pathlib.Path:
    path = pathlib.Path(name)
    if not path.exists():
        raise SettingError(f"{setting} = '{name}' does not exist.")
    return path


def _modules(names: Sequence[str]) -> Iterator[tuple[str, pathlib.Path]]:
    for name in names:
        path = _existing("modules", name).resolve()
        if path.suffix != ".py" and not path.is_dir():
            raise SettingError(f"modules = '{name}' is neither a Python file nor a folder.")
        yield from _walk(path.name, path)


def _code(code: str | None) -> tuple[str, bytes, bytes]:
    """Returns the archive's name, its bytes, and the constraints file for it."""
    if code is None:
        return _checkout(_ROOT) if (_ROOT / "setup.py").is_file() else _installed()
    path = _existing("code", code)
    if path.is_dir():
        if not (path / "setup.py").is_file():
            raise SettingError(f"code = '{code}' has no setup.py: give a checkout of switch_tf, or a wheel.")
        return _checkout(path)
    if not path.name.endswith((".whl", ".tar.gz", ".zip")):
        raise SettingError(
            f"code = '{code}' is not something that pip can install: give a checkout of switch_tf, or a wheel."
        )
    return path.name, path.read_bytes(), _constraints(_ROOT)


def _checkout(root: pathlib.Path) -> tuple[str, bytes, bytes]:
    files = (file for name in _SOURCES for file in _walk(f"switch_tf/{name}", root / name))
    return "switch_tf.tar.gz", _tar(files), _constraints(root)


def _constraints(root: pathlib.Path) -> bytes:
    """Returns a checkout's constraints.txt; without one, the versions that are installed here."""
    path = root / "constraints.txt"
    if path.is_file():
        return path.read_bytes()
    versions = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    lines = sorted(f"{name}=={version}\n" for name, version in versions.items() if name != _DISTRIBUTION)
    return "".join(lines).encode()


def _walk(name: str, path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """Lists a file, or the files of a folder, each with its name in an archive.

    Hidden ones are left out: they are of tools (`.git`), or hold secrets (`.env`, `.netrc`).
    """
    if path.is_file():
        yield name, path
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
            yield f"{name}/{inside.as_posix()}", file


def _tar(files: Iterable[tuple[str, pathlib.Path]]) -> bytes:
    """Packs files reproducibly: without times and owners."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, file in files:
            data = file.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def _installed() -> tuple[str, bytes, bytes]:
    """Builds a wheel from the installed package."""
    distribution = importlib.metadata.distribution(_DISTRIBUTION)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in sorted(distribution.files or [], key=str):
            # Scripts are outside of site-packages; pip generates them again.
            if ".." not in path.parts and "__pycache__" not in path.parts:
                wheel.writestr(zipfile.ZipInfo(path.as_posix()), path.read_binary())
    name = f"{_DISTRIBUTION.replace('-', '_')}-{distribution.version}-py3-none-any.whl"
    return name, packed.getvalue(), _constraints(_ROOT)
