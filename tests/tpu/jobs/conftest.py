"""A zone and a bucket on loopback."""

import pytest

from tests.support import fake_bucket
from tests.support.fake_cloud import FakeCloud
from tpu.jobs.bundle import Files
from tpu.jobs.cloud_api import Cloud
from tpu.jobs.object_store import open_storage
from tpu.jobs.spec import Job

MODEL_DIR = "gs://the-bucket/runs/mine"


class Zone(FakeCloud):
    """A fake zone, and the way to it."""

    endpoint: str

    def connect(self, timeout: float = 20.0) -> Cloud:
        """Connects as a command would, but for the length of pauses."""
        return Cloud(self.endpoint, timeout, first_pause=0.01)


@pytest.fixture
def zone():
    """A zone without a job."""
    fake = Zone()
    with fake.serving() as endpoint:
        fake.endpoint = endpoint
        yield fake


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that the emulator serves as gs://the-bucket."""
    folder = tmp_path / "buckets" / "the-bucket"
    folder.mkdir(parents=True)
    with fake_bucket.serving(folder.parent) as endpoint:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        yield folder


@pytest.fixture
def storage(bucket):
    """The job's model directory, through Google's own client."""
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
def files() -> Files:
    """What the job uploads."""
    return Files("TRAIN_STEPS = 3\n")
