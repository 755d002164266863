"""Files and folders in a bucket, by TensorFlow's own file system and a server of its protocol."""

import errno
import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tests.support.tiny_task
from switch_tf import storage
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.folder import CheckpointFolder, find_checkpoint
from switch_tf.checkpoints.manifest import Manifest
from switch_tf.checkpoints.tensor_bundle import Shard
from switch_tf.checkpoints.writer import CheckpointWriter
from switch_tf.data import cache_writer, sentencepiece, text_files
from switch_tf.data.cached_tasks import Cache
from switch_tf.data.training_batches import training_dataset
from switch_tf.errors import SettingError
from switch_tf.partitioning.engine import SingleEngine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from switch_tf.runs.recorder import CsvRecord, RunRecorder
from tasks import vocabularies
from tasks.pretraining import add_span_corruption_task
from tasks.pretraining import text_files as source_of_files

ROOT = pathlib.Path(__file__).parents[1]
VALUES = np.arange(200_000, dtype=np.float32)

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def bucket(buckets) -> str:
    """An empty bucket of the test's own (TensorFlow remembers for seconds what is where), and a healthy server."""
    name = f"bucket-{next(_numbers)}"
    buckets.make(name)
    buckets.make("refused", refused=True)
    buckets.make("read-only", read_only=True)
    buckets.heal()
    buckets.requests()
    return name


def writer_of(folder: CheckpointFolder, num_processes: int = 1) -> CheckpointWriter:
    engine = SingleEngine(Layout({}, {}), processes=Processes(tuple(f"a:{n}" for n in range(num_processes)), 0))
    engine.barrier = lambda: None
    return CheckpointWriter(folder, engine)


def save(folder: CheckpointFolder, step: int) -> None:
    writer = writer_of(folder)
    writer.start(step, [Shard("table", "", VALUES)], Manifest(step))
    writer.wait()


def test_checkpoints_are_kept_found_and_removed(buckets, bucket):
    folder = CheckpointFolder(f"gs://{bucket}/run/checkpoints", keep=2)
    assert folder.latest() is None
    for step in (10, 20, 30):
        save(folder, step)
    assert folder.steps() == [20, 30]
    assert not buckets.names(bucket, "run/checkpoints/step_00000010")
    found, step = find_checkpoint(f"gs://{bucket}/run/")
    np.testing.assert_array_equal(tensor_bundle.read(found.prefix(step), "table", tf.float32), VALUES)
    for initial in (f"gs://{bucket}/none", f"gs://{bucket}/run/checkpoints/step_00000010"):
        with pytest.raises(SettingError, match=f"INITIAL_CHECKPOINT = 'gs://{bucket}/.* holds no checkpoint"):
            find_checkpoint(initial)


def test_without_its_manifest_an_upload_is_no_checkpoint_and_is_replaced(buckets, bucket):
    folder = CheckpointFolder(f"gs://{bucket}/run/checkpoints")
    save(folder, 10)
    tensor_bundle.write_shards(folder.prefix(20), 3, [Shard("table", "", VALUES)])
    assert folder.steps() == [10]
    save(folder, 20)
    assert folder.steps() == [10, 20]
    assert sorted(name.rpartition("/")[2] for name in buckets.names(bucket, "run/checkpoints/step_00000020/s")) == [
        "state.data-00000-of-00001",
        "state.index",
    ]


def test_two_processes_write_the_parts_of_a_checkpoint(buckets, bucket):
    folder = CheckpointFolder(f"gs://{bucket}/run/checkpoints")
    writer = writer_of(folder, num_processes=2)
    writer.start(10, [Shard("table", "4 0,2", np.array([1.0, 2.0], np.float32))], Manifest(10))
    assert folder.latest() is None
    command = [sys.executable, "-m", "tests.programs.one_shard", folder.prefix(10)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    writer.wait()
    assert folder.steps() == [10]
    np.testing.assert_array_equal(tensor_bundle.read(folder.prefix(10), "table", tf.float32), [1.0, 2.0, 3.0, 4.0])
    assert not [name for name in buckets.names(bucket) if "part" in name]


def test_an_upload_that_is_cut_off_goes_on_where_it_was(buckets, bucket):
    folder = CheckpointFolder(f"gs://{bucket}/run/checkpoints")
    buckets.fail("PUT", "data-00000", 1, status=None)
    save(folder, 10)
    np.testing.assert_array_equal(tensor_bundle.read(folder.prefix(10), "table", tf.float32), VALUES)
    sent = [request.sent for request in buckets.requests() if request.method == "PUT" and "data-0" in request.path]
    assert sent[0] == 0 and 0 < sent[1] < VALUES.nbytes  # Asked how much has come, then the rest.


def test_a_bucket_that_does_not_answer_leaves_the_older_checkpoints_and_is_named(buckets, bucket):
    folder = CheckpointFolder(f"gs://{bucket}/run/checkpoints", keep=1)
    save(folder, 10)
    buckets.fail("PUT", "step_00000020", 1000)
    with pytest.raises(
        SettingError, match=rf"MODEL_DIR .*gs://{bucket}/run/.*bucket '{bucket}' does not answer.*503.*step 10 is safe"
    ):
        save(folder, 20)
    assert folder.steps() == [10]
    assert not buckets.names(bucket, "run/checkpoints/step_00000020")


def test_what_cannot_be_looked_up_is_neither_absent_nor_damaged(buckets, bucket):
    # Not written from here: what this process wrote, TensorFlow remembers.
    buckets.put(bucket, "run/checkpoints/step_00000010/manifest.json", b"{}")
    folder = CheckpointFolder(f"gs://{bucket}/run/checkpoints")
    buckets.fail("GET", "prefix=run/checkpoints/", 1000)
    with pytest.raises(tf.errors.AbortedError):
        folder.latest()
    buckets.heal()
    assert folder.latest() == 10
    buckets.fail("GET", "manifest.json", 1000)
    with pytest.raises(SettingError, match=f"step_00000010 cannot be read: the bucket '{bucket}' does not answer"):
        folder.manifest(10)


@pytest.mark.parametrize(
    ("refusing", "reason"),
    [
        ("none", "there is no bucket 'none': make it"),
        ("refused", r"the bucket 'refused' refuses this account .*403.*: give it roles/storage.objectAdmin"),
        ("read-only", r"the bucket 'read-only' refuses this account .*403.*: give it roles/storage.objectAdmin"),
    ],
)
def test_a_bucket_that_cannot_be_written_is_explained(tiny_config, refusing, reason):
    with pytest.raises(SettingError, match=rf"MODEL_DIR cannot be written \(gs://{refusing}/run/?.*\): {reason}"):
        RunRecorder(f"gs://{refusing}/run", tiny_config, 0)


def test_only_what_a_bucket_said_is_a_refusal():
    said = "Error executing an HTTP request: HTTP response code"
    assert (
        storage.refusal(tf.errors.NotFoundError(None, None, f"{said} 404 with body 'x' when reading gs://b/x")) is None
    )
    assert storage.refusal(tf.errors.DataLossError(None, None, "gs://b/x: checksum does not match")) is None
    assert storage.refusal(OSError("No space left on device")) is None
    error = tf.errors.PermissionDeniedError(
        None, None, f"{said} 401 with body 'x'\n\t when reading gs://b/x/y\n [[node]]"
    )
    assert storage.refusal(error).startswith(
        "the bucket 'b' refuses this account (HTTP response code 401 with body 'x')"
    )
    assert storage.address_in(error) == "gs://b/x/y"
    error = tf.errors.FailedPreconditionError(
        None, None, "Error executing an HTTP request: libcurl code 6 meaning 'Could not resolve hostname', error "
        "details: Could not resolve host: www.googleapis.com\n\t when reading metadata of gs://b/run"
    )  # fmt: skip
    assert "does not answer" in storage.refusal(error) and "Could not resolve host" in storage.refusal(error)


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a b"), "a b: No space left on device"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Read-only file system"),
        (
            tf.errors.ResourceExhaustedError(
                None, None, "{{function_node __wrapped}} /a b/c; No space left on device\n\tFailed to flush [Op:X]"
            ),
            "/a b/c: No space left on device",
        ),
        (tf.errors.PermissionDeniedError(None, None, "/a; Permission denied"), "/a: Permission denied"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), None),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a"), None),
        (BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), None),
    ],
)
def test_what_a_disk_says(error, explained):
    assert storage.refusal_of_disk(error) == explained
    if explained is not None:
        assert storage.reason_of(error) == explained.rpartition(": ")[2]


def test_a_mirror_copies_what_has_changed_and_seldom(buckets, bucket):
    buckets.put(bucket, "run/metrics.csv", b"step,loss\n1,0.5\n2,0.25\n")
    mirror = storage.Mirror(f"gs://{bucket}/run")
    record = CsvRecord(mirror.fetch("metrics.csv"), ["loss"], 1, f"gs://{bucket}/run")
    mirror.copy()
    assert buckets.content(bucket, "run/metrics.csv") == b"step,loss\n1,0.5\n"
    buckets.requests()
    mirror.copy()
    assert not buckets.requests()
    record.append([{"step": 2, "loss": 0.125}])
    mirror.copy_seldom()
    assert buckets.content(bucket, "run/metrics.csv").endswith(b"2,0.125\n")
    record.append([{"step": 3, "loss": 0.0625}])
    mirror.copy_seldom()
    assert buckets.content(bucket, "run/metrics.csv").endswith(b"2,0.125\n")
    buckets.fail("PUT", "metrics.csv", 1, status=None)
    mirror.copy(["metrics.csv"])
    assert buckets.content(bucket, "run/metrics.csv").endswith(b"3,0.0625\n")


def test_a_long_copy_is_made_less_often(buckets, bucket, monkeypatch):
    clock = iter([1000.0, 1010.0, 1999.0, 2011.0, 2012.0])
    monkeypatch.setattr(storage.time, "monotonic", lambda: next(clock))
    mirror = storage.Mirror(f"gs://{bucket}/run")
    path = pathlib.Path(mirror.path) / "metrics.csv"
    path.write_text("1\n")
    mirror.copy_seldom()  # Takes 10 seconds, one hundredth of those until the next.
    path.write_text("1\n2\n")
    mirror.copy_seldom()
    assert buckets.content(bucket, "run/metrics.csv") == b"1\n"
    mirror.copy_seldom()
    assert buckets.content(bucket, "run/metrics.csv") == b"1\n2\n"


def test_a_disk_has_no_copies(tmp_path):
    mirror = storage.Mirror(str(tmp_path))
    assert mirror.path == str(tmp_path) and mirror.fetch("metrics.csv") == str(tmp_path / "metrics.csv")
    mirror.copy()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("contents", ["größer\n", b"\x00\xff"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, contents):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), storage.replacing(path) as unfinished:
        pathlib.Path(unfinished).write_text("half")
        assert path.read_text() == "old"
        raise KeyError
    assert path.read_text() == "old"
    storage.write_atomically(path, contents)
    assert path.read_bytes() == (contents.encode() if isinstance(contents, str) else contents)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("link", ["file", "file.writing"])
def test_what_a_link_leads_to_is_left_alone(tmp_path, link):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / link).symlink_to(mine)
    storage.write_atomically(tmp_path / "file", "new")
    assert mine.read_text() == "mine" and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_file_in_a_bucket_is_replaced_whole(buckets, bucket):
    for contents in ("old", "new"):
        storage.write_atomically(f"gs://{bucket}/folder/file", contents)
    assert buckets.content(bucket, "folder/file") == b"new"
    assert buckets.names(bucket) == ["folder/file"]


def put_documents(buckets, bucket: str, num_files: int) -> None:
    """Files of three documents each, beside a folder and a file of another kind."""
    for number in range(num_files):
        documents = [" ".join(topic.split()) for topic in tests.support.tiny_task.TOPICS[3 * number : 3 * number + 3]]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        buckets.put(bucket, f"text/train-{number:02d}.jsonl", lines.encode())
    buckets.put(bucket, "text/train-folder.jsonl/other.txt", b"no document\n")
    buckets.put(bucket, "text/readme.md", b"no document\n")


def test_data_files_by_pattern(buckets, bucket):
    put_documents(buckets, bucket, 12)  # More than a page of a listing.
    files = text_files.matching_files(f"gs://{bucket}/text/train-*.jsonl", "TRAIN_FILES")
    assert files == [f"gs://{bucket}/text/train-{number:02d}.jsonl" for number in range(12)]
    texts = [example["text"] for example in text_files.read_documents(tf.constant(files[-1]))]
    assert texts == [" ".join(topic.split()).encode() for topic in tests.support.tiny_task.TOPICS[33:36]]
    for pattern, reason in (
        (f"gs://{bucket}/no/*", "matches no file"),
        ("gs://none/*.txt", ": there is no bucket 'none'"),
        ("gs://refused/*.txt", ": the bucket 'refused' refuses this account"),
    ):
        with pytest.raises(SettingError, match=rf"TRAIN_FILES = .*{reason}"):
            text_files.matching_files(pattern, "TRAIN_FILES")


def test_a_vocabulary_and_a_cache_in_a_bucket(buckets, bucket):
    put_documents(buckets, bucket, 3)
    sentencepiece.make_vocabulary(f"gs://{bucket}/mine.model", 400, files=[f"gs://{bucket}/text/*.jsonl"])
    with pytest.raises(
        SettingError, match=r"--output=gs://read-only/mine.model cannot be written: .*refuses this account"
    ):
        sentencepiece.make_vocabulary("gs://read-only/mine.model", 400, files=[f"gs://{bucket}/text/train-00.jsonl"])

    files = source_of_files({"train": f"gs://{bucket}/text/train-??.jsonl"})
    add_span_corruption_task("test_span_corruption_in_a_bucket", files)
    vocabulary = vocabularies.VocabularyFile(f"gs://{bucket}/mine.model")
    cache = Cache(f"gs://{bucket}/cache", use=True)
    cache_writer.write_cache("test_span_corruption_in_a_bucket", cache.folder, vocabulary, min_shards=1)
    names = buckets.names(bucket, "cache/test_span_corruption_in_a_bucket")
    assert len(names) == 3 + len(("COMPLETED", "vocabularies.json", "info.train.json", "stats.train.json"))
    lengths = {"inputs": 32, "targets": 10}
    dataset = training_dataset("test_span_corruption_in_a_bucket", lengths, 8, seed=0, cache=cache)
    (batch,) = dataset.take(1).as_numpy_iterator()
    assert batch["decoder_target_tokens"].shape == (8, 10) and (batch["decoder_target_tokens"] > 0).any()
    with pytest.raises(SettingError, match=r"CACHE_DIR = 'gs://read-only/cache' .* refuses this account"):
        cache_writer.write_cache("test_span_corruption_in_a_bucket", "gs://read-only/cache")
