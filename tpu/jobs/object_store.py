"""Files of a model directory, in a bucket or in a local folder, through one interface; without TensorFlow."""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from switch_tf.errors import SettingError
from tpu.jobs.cloud_extra import require_cloud_extra


class File(NamedTuple):
    """The bytes of a file, and their version: `write` compares it to find out whether the file has changed since."""

    data: bytes
    version: int


# The version of a file that does not exist.
ABSENT = 0


class Changed(Exception):
    """Another machine has written the file since its version was read."""


class Storage(Protocol):
    """A folder.

    Attributes:
      url: its path or address.
    """

    url: str

    def read(self, name: str) -> File | None:
        """Reads a file; None if it does not exist."""

    def read_part(self, name: str, start: int, end: int | None = None) -> bytes:
        """Reads bytes [start, end); fewer or none if the file is shorter or does not exist."""

    def size(self, name: str) -> int:
        """The size of a file in bytes; 0 if it does not exist."""

    def write(self, name: str, data: bytes, version: int | None = None) -> None:
        """Writes a file atomically.

        Args:
          name: of the file.
          data: its bytes.
          version: the version to replace, ABSENT to create the file; None to write unconditionally.

        Raises:
          Changed: if the file has another version.
        """

    def names(self, prefix: str) -> list[str]:
        """Sorted names of all files, in subfolders too, that start with a prefix."""


class Folder:
    """A local folder, such as a copy of a model directory."""

    def __init__(self, path: str):
        """Opens the folder, which need not exist."""
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
        current = self.read(name)
        if version is not None and version != (current.version if current else ABSENT):
            raise Changed(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".writing")
        unfinished.unlink(missing_ok=True)  # It could be a link.
        unfinished.write_bytes(data)
        unfinished.replace(path)

    def names(self, prefix: str) -> list[str]:
        found = (str(path.relative_to(self._path)) for path in self._path.rglob("*") if path.is_file())
        return sorted(name for name in found if name.startswith(prefix))


class Bucket:
    """A folder in a bucket of Cloud Storage, or of an emulator at STORAGE_EMULATOR_HOST."""

    def __init__(self, url: str):
        """Opens the folder.

        Args:
          url: "gs://bucket/folder".

        Raises:
          SettingError: without credentials or the [cloud] extra.
        """
        with require_cloud_extra():
            import google.cloud.storage as storage
            from google.api_core import exceptions
            from google.auth.exceptions import DefaultCredentialsError
        self.url = url
        self._exceptions = exceptions
        name, _, folder = url.removeprefix("gs://").partition("/")
        self._prefix = folder.strip("/") + "/"
        try:
            # Only creating buckets needs a project.
            self._client = storage.Client(project="none")
        except DefaultCredentialsError as error:
            raise missing_credentials() from error
        self._bucket = self._client.bucket(name)

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turns the client's errors into `Changed` or a SettingError."""
        from google.auth.exceptions import GoogleAuthError, TransportError
        from requests.exceptions import RequestException

        try:
            yield
        except self._exceptions.PreconditionFailed as error:
            raise Changed(self.url) from error
        except (self._exceptions.Forbidden, self._exceptions.Unauthorized) as error:
            raise SettingError(
                f"These credentials may not read or write {self.url}: grant the account the role Storage Object Admin "
                "on the bucket."
            ) from error
        except self._exceptions.NotFound as error:
            raise SettingError(f"There is no bucket {self._bucket.name}: create it in the TPU's region.") from error
        except (self._exceptions.GoogleAPIError, RequestException, TransportError) as error:
            raise SettingError(f"{self.url} does not respond ({_first_line(error)}): run the command again.") from error
        except GoogleAuthError as error:
            raise missing_credentials() from error

    def read(self, name: str) -> File | None:
        with self._translate_errors():
            while blob := self._bucket.get_blob(self._prefix + name):
                version = blob.generation
                # The file may be replaced between the two requests: read it again.
                with contextlib.suppress(self._exceptions.PreconditionFailed, self._exceptions.NotFound):
                    return File(blob.download_as_bytes(if_generation_match=version), version)
            return None

    def read_part(self, name: str, start: int, end: int | None = None) -> bytes:
        with self._translate_errors():
            try:
                blob = self._bucket.blob(self._prefix + name)
                return blob.download_as_bytes(start=start, end=None if end is None else end - 1, checksum=None)
            except (self._exceptions.RequestRangeNotSatisfiable, self._exceptions.NotFound):
                return b""

    def size(self, name: str) -> int:
        with self._translate_errors():
            blob = self._bucket.get_blob(self._prefix + name)
            return blob.size if blob else 0

    def write(self, name: str, data: bytes, version: int | None = None) -> None:
        with self._translate_errors():
            self._bucket.blob(self._prefix + name).upload_from_string(
                data, content_type="application/octet-stream", if_generation_match=version
            )

    def names(self, prefix: str) -> list[str]:
        with self._translate_errors():
            blobs = self._client.list_blobs(self._bucket, prefix=self._prefix + prefix)
            # TensorFlow creates empty objects for folders.
            names = (blob.name.removeprefix(self._prefix) for blob in blobs if not blob.name.endswith("/"))
            return sorted(names)


def missing_credentials() -> SettingError:
    """Returns the error for a machine without Google Cloud credentials."""
    return SettingError(
        "No Google Cloud credentials were found: run `gcloud auth application-default login`, or set "
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
