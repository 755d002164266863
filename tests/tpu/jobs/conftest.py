"""Fixtures: a fake zone, a fake bucket, and a job for them."""

import pytest

from tests.support import fake_bucket
from tests.support.fake_bucket import MODEL_DIR
from tests.support.fake_cloud import FakeCloud
from tpu.jobs.bundle import Bundle
from tpu.jobs.cloud_api import Cloud
from tpu.jobs.object_store import open_storage
from tpu.jobs.spec import Job


class Zone(FakeCloud):
    """A fake zone, and connections to it."""

    endpoint: str

    def connect(self, timeout: float = 20.0) -> Cloud:
        """Connects as a command does, with shorter pauses between retries."""
        return Cloud(self.endpoint, timeout, first_pause=0.01)


@pytest.fixture
def zone():
    """A zone without jobs."""
    fake = Zone()
    with fake.serving() as endpoint:
        fake.endpoint = endpoint
        yield fake


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The local folder that the emulator serves as gs://the-bucket."""
    folder = tmp_path / "buckets" / "the-bucket"
    folder.mkdir(parents=True)
    with fake_bucket.serving(folder.parent) as endpoint:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        yield folder


@pytest.fixture
def storage(bucket):
    """The job's model directory, opened with Google's client."""
    return open_storage(MODEL_DIR)


@pytest.fixture
def job() -> Job:
    """A job on 32 cores."""
    return Job(
        name="mine",
        project="the-project",
        zone="europe-west4-a",
        accelerator_type="v3-32",
        model_dir=MODEL_DIR,
        max_restarts=2,
    )


@pytest.fixture
def bundle() -> Bundle:
    """The job's bundle."""
    return Bundle("TRAIN_STEPS = 3\n")
