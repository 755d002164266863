"""A local folder and a bucket behave alike."""

import google.auth.exceptions
import pytest
import requests

from switch_tf.errors import SettingError
from tests.support.fake_bucket import MODEL_DIR
from tpu.jobs.object_store import ABSENT, Changed, open_storage


@pytest.fixture(params=["folder", "bucket"])
def any_storage(request, tmp_path, bucket):
    return open_storage(MODEL_DIR if request.param == "bucket" else str(tmp_path / "local"))


def test_files_are_read_as_they_were_written(any_storage):
    assert any_storage.read("a/b.txt") is None
    assert any_storage.size("a/b.txt") == 0
    assert any_storage.read_part("a/b.txt", 0) == b""
    any_storage.write("a/b.txt", b"0123456789")
    any_storage.write("a/c d.txt", b"")
    any_storage.write("b", b"x")
    assert any_storage.read("a/b.txt").data == b"0123456789"
    assert any_storage.size("a/b.txt") == 10
    assert any_storage.read_part("a/b.txt", 3) == b"3456789"
    assert any_storage.read_part("a/b.txt", 3, 5) == b"34"
    assert any_storage.read_part("a/b.txt", 10) == b""
    assert any_storage.names("a/") == ["a/b.txt", "a/c d.txt"]
    assert any_storage.names("") == ["a/b.txt", "a/c d.txt", "b"]


def test_a_write_over_another_version_fails(any_storage):
    any_storage.write("record", b"1", ABSENT)
    with pytest.raises(Changed):
        any_storage.write("record", b"2", ABSENT)
    version = any_storage.read("record").version
    any_storage.write("record", b"3", version)
    with pytest.raises(Changed):
        any_storage.write("record", b"4", version)
    assert any_storage.read("record").data == b"3"


def test_a_missing_bucket(bucket):
    with pytest.raises(SettingError, match="There is no bucket another-bucket: create it in the TPU's region"):
        open_storage("gs://another-bucket/mine").names("")


@pytest.mark.parametrize(
    "error",
    [
        google.auth.exceptions.TransportError("no route to host"),
        requests.exceptions.ConnectionError("no route to host"),
        requests.exceptions.ReadTimeout("no route to host"),
        requests.exceptions.ChunkedEncodingError("no route to host"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_bucket_that_does_not_respond(storage, monkeypatch, error):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(storage._bucket, "get_blob", fail)
    with pytest.raises(SettingError, match=r"does not respond \(no route to host\): run the command again"):
        storage.read("record")


def test_without_credentials(monkeypatch, tmp_path):
    def none(*arguments, **settings):
        raise google.auth.exceptions.DefaultCredentialsError("none")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("google.auth.default", none)
    with pytest.raises(SettingError, match="No Google Cloud credentials were found: run `gcloud auth"):
        open_storage(MODEL_DIR)
