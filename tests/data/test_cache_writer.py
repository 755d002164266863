"""Cached tasks: the files that seqio expects, interrupted and continued, and never with another vocabulary."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf

import tests.support.tiny_task
from switch_tf.data import cache_writer
from switch_tf.data.cache_writer import write_cache
from switch_tf.data.cached_tasks import Cache, open_cache
from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.data.resume_settings import data_settings
from switch_tf.data.sentencepiece import path_in, train_sentencepiece
from switch_tf.data.task_lookup import tasks_of
from switch_tf.data.training_batches import training_dataset
from switch_tf.errors import SettingError
from tasks import vocabularies
from tasks.pretraining import add_span_corruption_task, text_files
from tests.support.launch import ROOT

LENGTHS = {"inputs": 64, "targets": 16}
TASK = "cached_span_corruption"


@pytest.fixture(scope="module", autouse=True)
def text(tmp_path_factory) -> pathlib.Path:
    """Three files of training text, one held out; a task over them, and a vocabulary."""
    root = tmp_path_factory.mktemp("text")
    for number in range(3):
        documents = [" ".join(topic.split()) for topic in tests.support.tiny_task.TOPICS[number::4]]
        (root / f"train-{number}.txt").write_text("\n".join(documents))
    (root / "held-out.txt").write_text(
        "\n".join(" ".join(topic.split()) for topic in tests.support.tiny_task.TOPICS[3::4])
    )
    files = text_files({"train": f"{root}/train-*.txt", "validation": f"{root}/held-out.txt"})
    add_span_corruption_task(TASK, files)
    (root / "vocabulary").write_bytes(train_sentencepiece(tests.support.tiny_task.TOPICS, 400))
    return root


@pytest.fixture(autouse=True)
def _vocabulary(text) -> None:
    vocabularies.select_vocabulary(str(text / "vocabulary"))


def cached(folder: pathlib.Path) -> Cache:
    return Cache(str(folder), use=True)


def tokens(dataset: tf.data.Dataset) -> list[bytes]:
    return sorted(example["targets"].tobytes() for example in dataset.as_numpy_iterator())


def tokenized(split: str) -> tf.data.Dataset:
    task = seqio.TaskRegistry.get(TASK)
    return task.preprocess_precache(task.source.get_dataset(split, shuffle=False))


def test_files_are_those_of_seqio_and_hold_every_document(tmp_path):
    write_cache(TASK, str(tmp_path), min_shards=8)
    folder = tmp_path / TASK
    names = {path.name for path in folder.iterdir()}
    shards = {f"train.tfrecord-{n:05d}-of-00009" for n in range(9)}
    held_out = {f"validation.tfrecord-{n:05d}-of-00008" for n in range(8)}
    facts = {f"{kind}.{split}.json" for kind in ("info", "stats") for split in ("train", "validation")}
    assert names == {"COMPLETED", "vocabularies.json"} | shards | held_out | facts
    examples = list(tokenized("train").as_numpy_iterator())
    counts = [len(example["targets"]) for example in examples]
    stats = json.loads((folder / "stats.train.json").read_text())
    assert stats == {
        "examples": len(examples),
        "inputs_tokens": 0,
        "inputs_max_tokens": 0,
        "targets_tokens": sum(counts),
        "targets_max_tokens": max(counts),
    }
    info = json.loads((folder / "info.train.json").read_text())
    assert info["num_shards"] == 9 and info["seqio_version"] == seqio.__version__
    assert info["features"]["targets"] == {"shape": [None], "dtype": "int32"}
    assert info["features"]["targets_pretokenized"] == {"shape": [], "dtype": "string"}
    task = seqio.TaskRegistry.get(TASK)
    before = list(seqio.get_global_cache_dirs())
    with open_cache(cached(tmp_path), task, "train") as use_cached:
        assert use_cached and task.cache_dir == str(folder)
        source = task._get_cached_source("train")
    assert seqio.get_global_cache_dirs() == before
    assert tokens(source.get_dataset("train", shuffle=False)) == tokens(tokenized("train"))


def test_a_cache_is_not_remembered(tmp_path):
    """seqio's tasks keep the first folder that they were found in; the one that is handed in is read nevertheless."""
    task = seqio.TaskRegistry.get(TASK)
    for name, min_shards in (("first", 3), ("second", 6)):
        write_cache(TASK, str(tmp_path / name), splits=["train"], min_shards=min_shards)
        with open_cache(cached(tmp_path / name), task, "train"):
            assert len(task._get_cached_source("train").list_shards("train")) == min_shards
    with open_cache(Cache(str(tmp_path / "first")), task, "train") as use_cached:
        assert not use_cached and task.cache_dir is None


def test_training_reads_the_cache(tmp_path, monkeypatch):
    write_cache(TASK, str(tmp_path))

    def refuse(*_, **__):
        raise AssertionError("the text is read")

    monkeypatch.setattr(seqio.TaskRegistry.get(TASK).source, "get_dataset", refuse)
    batch = next(iter(training_dataset(TASK, LENGTHS, 4, 0, cache=cached(tmp_path))))
    assert batch["encoder_input_tokens"].shape == (4, 64)
    assert list(evaluation_batches(TASK, LENGTHS, 4, 1, cache=cached(tmp_path)))


def test_a_run_must_keep_its_cache(tmp_path):
    write_cache(TASK, str(tmp_path), splits=["train"], min_shards=4)
    kept = data_settings(TASK, cached(tmp_path))
    folder = tmp_path / TASK
    stats = json.loads((folder / "stats.train.json").read_text())
    phrase = f"{stats['examples']} examples, {stats['targets_tokens']:,} tokens, 6 files in {folder}"
    assert kept == {"USE_CACHED": True, f"the cache of {TASK}": phrase}
    shutil.rmtree(folder)
    write_cache(TASK, str(tmp_path), splits=["train"], min_shards=8)
    assert data_settings(TASK, cached(tmp_path))[f"the cache of {TASK}"] == phrase.replace("6 files", "9 files")
    assert data_settings(TASK, Cache(str(tmp_path))) == data_settings(TASK) == {"USE_CACHED": False}


def test_a_command_that_was_cut_off_goes_on(tmp_path, monkeypatch, capsys):
    write_cache(TASK, str(tmp_path / "whole"), min_shards=6)
    cut = str(tmp_path / "cut")
    write, calls = cache_writer._write_shards, []

    def cut_off(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            for shard in arguments[1]:
                pathlib.Path(shard + ".writing").write_text("half of a shard")
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(cache_writer, "_write_shards", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_cache(TASK, cut, min_shards=6)
    assert not (tmp_path / "cut" / TASK / "COMPLETED").exists()
    with pytest.raises(SettingError, match="lacks cached_span_corruption, split 'train', or a part of it: run `swit"):
        training_dataset(TASK, LENGTHS, 4, 0, cache=cached(tmp_path / "cut"))
    write_cache(TASK, cut, min_shards=6)
    assert len(calls) == 2 + 2 + 1  # The first part was whole.
    names = {path.name for path in (tmp_path / "whole" / TASK).iterdir()}
    assert {path.name for path in (tmp_path / "cut" / TASK).iterdir()} == names
    for name in names:
        assert (tmp_path / "cut" / TASK / name).read_bytes() == (tmp_path / "whole" / TASK / name).read_bytes()
    write_cache(TASK, cut, min_shards=6)
    assert len(calls) == 5 and "cached already" in capsys.readouterr().out


def test_another_vocabulary_is_refused(text, tmp_path):
    write_cache(TASK, str(tmp_path), splits=["train"])
    (tmp_path / "other").write_bytes(train_sentencepiece(tests.support.tiny_task.TOPICS, 390))
    vocabularies.select_vocabulary(str(tmp_path / "other"))
    for attempt in (
        lambda: training_dataset(TASK, LENGTHS, 4, 0, cache=cached(tmp_path)),
        lambda: write_cache(TASK, str(tmp_path), splits=["validation"]),
    ):
        with pytest.raises(SettingError, match="cached_span_corruption was cached with another vocabulary"):
            attempt()
    vocabularies.select_vocabulary(str(text / "vocabulary"))
    training_dataset(TASK, LENGTHS, 4, 0, cache=cached(tmp_path))


def test_the_folder_keeps_the_vocabulary(text, tmp_path):
    given = vocabularies.VocabularyFile(str(text / "vocabulary"))
    write_cache(TASK, str(tmp_path), given, splits=["validation"])
    kept = pathlib.Path(path_in(str(tmp_path)))
    assert kept.read_bytes() == (text / "vocabulary").read_bytes()
    vocabularies.select_vocabulary(str(kept))
    assert list(evaluation_batches(TASK, LENGTHS, 4, 1, cache=cached(tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixture_or_task": TASK, "splits": ["test"]}, "has no split 'test': it has train, validation"),
        ({"mixture_or_task": "empty_span_corruption"}, "yields no example in its split 'train'"),
        ({"mixture_or_task": "cached_span_coruption"}, "did you mean 'cached_span_corruption'"),
        ({"mixture_or_task": TASK, "min_shards": 0}, "--min_shards=0 must be at least 1"),
    ],
)
def test_what_cannot_be_cached_is_said(tmp_path, arguments, message):
    with pytest.raises(SettingError, match=message):
        write_cache(folder=str(tmp_path), **arguments)


def test_a_cache_needs_a_folder(tmp_path):
    with pytest.raises(SettingError, match=r"needs --gin\.CACHE_DIR"):
        write_cache(TASK)
    with pytest.raises(SettingError, match="USE_CACHED = True needs CACHE_DIR"):
        training_dataset(TASK, LENGTHS, 4, 0, cache=Cache(use=True))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SettingError, match=r"CACHE_DIR = '.*file' cannot be written"):
        write_cache(TASK, str(tmp_path / "file"))


def test_a_task_without_a_place_for_a_cache_is_refused(tmp_path):
    import tasks.multilingual

    assert tasks_of(seqio.get_mixture_or_task("mc4_languages"))[0].name == tasks.multilingual.TASKS["af"]
    with pytest.raises(SettingError, match="mc4 cannot be cached"):
        write_cache("mc4", str(tmp_path))
    with pytest.raises(SettingError, match="mc4 cannot be cached: set it to False"):
        training_dataset("mc4", LENGTHS, 4, 0, cache=cached(tmp_path))


@pytest.mark.slow
def test_beam_writes_the_same(text, tmp_path):
    """seqio's own job, in a process of its own: Beam is an extra."""
    pytest.importorskip("apache_beam")
    job = [sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--module_import=tests.programs.tasks_for_beam"]
    job += [f"--tasks=^{TASK}$", f"--output_cache_dir={tmp_path / 'beam'}", "--min_shards=6"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TEXT_FOLDER": str(text), "TEXT_TASK": TASK}
    done = subprocess.run(job, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    write_cache(TASK, str(tmp_path / "ours"), min_shards=6)
    ours, theirs = tmp_path / "ours" / TASK, tmp_path / "beam" / TASK
    assert {path.name for path in ours.iterdir()} ^ {path.name for path in theirs.iterdir()} == {"vocabularies.json"}

    def examples(folder: pathlib.Path, split: str) -> list[list]:
        """The fields of each example, in no order: neither that of a map in a record nor that of records is fixed."""
        records = tf.data.TFRecordDataset([str(path) for path in folder.glob(f"{split}.tfrecord*")])
        parsed = (tf.train.Example.FromString(record).features.feature for record in records.as_numpy_iterator())
        return sorted(sorted((name, str(value)) for name, value in fields.items()) for fields in parsed)

    for split in ("train", "validation"):
        for kind in ("info", "stats"):
            first, second = (json.loads((folder / f"{kind}.{split}.json").read_text()) for folder in (ours, theirs))
            assert first == second
        assert examples(ours, split) == examples(theirs, split)
        assert len(examples(ours, split)) == first["examples"] > 0


def test_numbers_and_bytes_are_written_as_seqio_writes_them():
    example = {
        "tokens": np.array([3, 4], np.int32),
        "text": "naïve".encode(),
        "weights": np.array([0.5], np.float32),
        "flag": np.bool_(True),
        "words": np.array([b"a", b"bc"], object),
    }
    assert cache_writer._serialize(example) == seqio.dict_to_tfexample(example).SerializeToString()


@pytest.fixture
def half_held_out():
    """A mixture of which one task has no held-out split."""
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({"text": "a text " * 200}),
        splits=["train"],
        caching_permitted=True,
    )
    add_span_corruption_task("only_train", source)
    seqio.MixtureRegistry.add("half_held_out", [TASK, "only_train"], default_rate=1.0)
    yield "half_held_out"
    seqio.MixtureRegistry.remove("half_held_out")
    seqio.TaskRegistry.remove("only_train")


def test_of_a_mixture_each_task_has_the_splits_that_it_has(half_held_out, tmp_path):
    """As GLUE, some of whose tasks are for training and others for evaluation."""
    write_cache(half_held_out, str(tmp_path))
    for split in ("train", "validation"):
        with open_cache(cached(tmp_path), seqio.get_mixture_or_task(half_held_out), split) as use_cached:
            assert use_cached
    write_cache(half_held_out, str(tmp_path), splits=["validation"])
    with pytest.raises(SettingError, match="half_held_out has no split 'test'"):
        write_cache(half_held_out, str(tmp_path), splits=["test"])
