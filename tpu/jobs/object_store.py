"""Files of a model directory: in a bucket or in a local folder, through one interface."""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from switch_tf.errors import SettingError
from tpu.jobs.cloud_extra import need_extra


class File(NamedTuple):
    """A file as it was read: its bytes, and the version that `write` takes to find out whether it has changed since."""

    data: bytes
    version: int


# Of a file that is not there.
ABSENT = 0


class Changed(Exception):
    """Somebody else has written the file in the meantime."""


class Storage(Protocol):
    """A folder."""

    url: str

    def read(self, name: str) -> File | None:
        """Reads a file; None where it is not there."""

    def read_part(self, name: str, start: int, end: int | None = None) -> bytes:
        """Reads the bytes from `start` to before `end`; none where the file is not there or shorter."""

    def size(self, name: str) -> int:
        """The bytes of a file; 0 where it is not there."""

    def write(self, name: str, data: bytes, version: int | None = None) -> None:
        """Writes a file, all of it or nothing.

        Args:
          name: of the file.
          data: its bytes.
          version: what is to be there before, ABSENT for nothing; None for whatever is.

        Raises:
          Changed: if there is another version.
        """

    def names(self, prefix: str) -> list[str]:
        """Names of all files, in folders below as well, that begin with a prefix; in order."""


class Folder:
    """A local folder: a model directory that has been copied home."""

    def __init__(self, path: str):
        """Opens the folder, which need not be there."""
        self.url = path
        self._path = pathlib.Path(path)

    def read(self, name: str) -> File | None:
        path = self._path / name
        if not path.is_file():
            return None
        data = path.read_bytes()
        return File(data, int.from_bytes(hashlib.sha256(data).digest()[:8]))

    def read_part(self, name: str, start: int, end: int | None = None) -> bytes:
        file = self.read(name)
        return file.data[start:end] if file else b""

    def size(self, name: str) -> int:
        path = self._path / name
        return path.stat().st_size if path.is_file() else 0

    def write(self, name: str, data: bytes, version: int | None = None) -> None:
        path = self._path / name
        there = self.read(name)
        if version is not None and version != (there.version if there else ABSENT):
            raise Changed(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".writing")
        unfinished.write_bytes(data)
        unfinished.replace(path)

    def names(self, prefix: str) -> list[str]:
        found = (str(path.relative_to(self._path)) for path in self._path.rglob("*") if path.is_file())
        return sorted(name for name in found if name.startswith(prefix))


class Bucket:
    """A folder in a bucket of Cloud Storage, or of an emulator (STORAGE_EMULATOR_HOST)."""

    def __init__(self, url: str):
        """Opens the folder.

        Args:
          url: "gs://bucket/folder".

        Raises:
          SettingError: without credentials or the [cloud] extra.
        """
        with need_extra():
            from google.api_core import exceptions
            from google.auth.exceptions import DefaultCredentialsError
            from google.cloud import storage
        self.url = url
        self._exceptions = exceptions
        name, _, folder = url.removeprefix("gs://").partition("/")
        self._prefix = folder.strip("/") + "/"
        try:
            # The project only matters for making buckets.
            self._client = storage.Client(project="none")
        except DefaultCredentialsError as error:
            raise missing_credentials() from error
        self._bucket = self._client.bucket(name)

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        from google.auth.exceptions import GoogleAuthError, TransportError
        from requests.exceptions import RequestException

        try:
            yield
        except self._exceptions.PreconditionFailed as error:
            raise Changed(self.url) from error
        except (self._exceptions.Forbidden, self._exceptions.Unauthorized) as error:
            raise SettingError(
                f"{self.url} may not be read or written with these credentials: give the account Storage Object "
                "Admin on the bucket."
            ) from error
        except self._exceptions.NotFound as error:
            raise SettingError(f"There is no bucket {self._bucket.name}: make it, in the TPU's region.") from error
        except (self._exceptions.GoogleAPIError, RequestException, TransportError) as error:
            raise SettingError(f"{self.url} does not answer: give the command again ({_first_line(error)}).") from error
        except GoogleAuthError as error:
            raise missing_credentials() from error

    def read(self, name: str) -> File | None:
        with self._sentences():
            while blob := self._bucket.get_blob(self._prefix + name):
                version = blob.generation
                # What is read must be what the version belongs to.
                with contextlib.suppress(self._exceptions.PreconditionFailed, self._exceptions.NotFound):
                    return File(blob.download_as_bytes(if_generation_match=version), version)
            return None

    def read_part(self, name: str, start: int, end: int | None = None) -> bytes:
        with self._sentences():
            try:
                blob = self._bucket.blob(self._prefix + name)
                return blob.download_as_bytes(start=start, end=None if end is None else end - 1, checksum=None)
            except (self._exceptions.RequestRangeNotSatisfiable, self._exceptions.NotFound):
                return b""

    def size(self, name: str) -> int:
        with self._sentences():
            blob = self._bucket.get_blob(self._prefix + name)
            return blob.size if blob else 0

    def write(self, name: str, data: bytes, version: int | None = None) -> None:
        with self._sentences():
            self._bucket.blob(self._prefix + name).upload_from_string(
                data, content_type="application/octet-stream", if_generation_match=version
            )

    def names(self, prefix: str) -> list[str]:
        with self._sentences():
            blobs = self._client.list_blobs(self._bucket, prefix=self._prefix + prefix)
            # TensorFlow makes empty objects that stand for folders.
            names = (blob.name.removeprefix(self._prefix) for blob in blobs if not blob.name.endswith("/"))
            return sorted(names)


def missing_credentials() -> SettingError:
    """Returns the error for a machine that nobody has signed in on."""
    return SettingError(
        "There are no Google Cloud credentials here: run `gcloud auth application-default login`, or set "
        "GOOGLE_APPLICATION_CREDENTIALS to a key file."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_storage(url: str) -> Storage:
    """Opens a model directory.

    Args:
      url: "gs://bucket/folder", or a local folder.

    Returns:
      The folder.
    """
    return Bucket(url) if url.startswith("gs://") else Folder(url)
