"""Cached tasks: the files that seqio expects, cut off and taken up again, and never with another vocabulary."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

import tests.support.tiny_task
from switch_tf.data import cache_writer, cached_tasks
from switch_tf.data.batches import data_settings, evaluation_batches, training_dataset
from switch_tf.data.sentencepiece import path_in, train_sentencepiece
from switch_tf.errors import SettingError
from tasks import vocabularies
from tasks.pretraining import add_span_corruption_task, text_files

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
def _fresh(text, monkeypatch):
    """Every test starts with the vocabulary, and with no cache known to seqio or to the task."""
    vocabularies.select_vocabulary(str(text / "vocabulary"))
    monkeypatch.setattr(seqio.TaskRegistry.get(TASK), "_cache_dir", None)
    monkeypatch.setattr(seqio.TaskRegistry.get(TASK), "_stats", {})
    before = list(seqio.get_global_cache_dirs())
    yield
    seqio.set_global_cache_dirs(before)


def settings(folder: pathlib.Path, use: bool = True) -> None:
    gin.clear_config()
    gin.bind_parameter("Cache.folder", str(folder))
    gin.bind_parameter("Cache.use", use)


def tokens(dataset: tf.data.Dataset) -> list[bytes]:
    return sorted(example["targets"].tobytes() for example in dataset.as_numpy_iterator())


def tokenised(split: str) -> tf.data.Dataset:
    task = seqio.TaskRegistry.get(TASK)
    return task.preprocess_precache(task.source.get_dataset(split, shuffle=False))


def test_files_are_those_of_seqio_and_hold_every_document(tmp_path):
    settings(tmp_path)
    cache_writer.cache(TASK, min_shards=8)
    folder = tmp_path / TASK
    names = {path.name for path in folder.iterdir()}
    shards = {f"train.tfrecord-{n:05d}-of-00009" for n in range(9)}
    held_out = {f"validation.tfrecord-{n:05d}-of-00008" for n in range(8)}
    facts = {f"{kind}.{split}.json" for kind in ("info", "stats") for split in ("train", "validation")}
    assert names == {"COMPLETED", "vocabularies.json"} | shards | held_out | facts
    examples = list(tokenised("train").as_numpy_iterator())
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
    seqio.set_global_cache_dirs([str(tmp_path)])
    source = seqio.TaskRegistry.get(TASK)._get_cached_source("train")
    assert tokens(source.get_dataset("train", shuffle=False)) == tokens(tokenised("train"))


def test_training_reads_the_cache(tmp_path, monkeypatch):
    settings(tmp_path)
    cache_writer.cache(TASK)

    def refuse(*_, **__):
        raise AssertionError("the text is read")

    monkeypatch.setattr(seqio.TaskRegistry.get(TASK).source, "get_dataset", refuse)
    batch = next(iter(training_dataset(TASK, LENGTHS, 4, 0)))
    assert batch["encoder_input_tokens"].shape == (4, 64)
    assert list(evaluation_batches(TASK, LENGTHS, 4, 1))


def test_a_run_must_keep_its_cache(tmp_path):
    settings(tmp_path)
    cache_writer.cache(TASK, splits=["train"], min_shards=4)
    kept = data_settings(TASK)
    folder = tmp_path / TASK
    stats = json.loads((folder / "stats.train.json").read_text())
    phrase = f"{stats['examples']} examples, {stats['targets_tokens']:,} tokens, 6 files in {folder}"
    assert kept == {"USE_CACHED": True, f"the cache of {TASK}": phrase}
    shutil.rmtree(folder)
    seqio.TaskRegistry.get(TASK)._cache_dir = None
    cache_writer.cache(TASK, splits=["train"], min_shards=8)
    assert data_settings(TASK)[f"the cache of {TASK}"] == phrase.replace("6 files", "9 files")
    settings(tmp_path, use=False)
    assert data_settings(TASK) == {"USE_CACHED": False}


def test_a_command_that_was_cut_off_goes_on(tmp_path, monkeypatch, capsys):
    settings(tmp_path / "whole")
    cache_writer.cache(TASK, min_shards=6)
    settings(tmp_path / "cut")
    write, calls = cache_writer._write_part, []

    def cut_off(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            for shard in arguments[1]:
                pathlib.Path(shard + ".writing").write_text("half of a shard")
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(cache_writer, "_write_part", cut_off)
    with pytest.raises(KeyboardInterrupt):
        cache_writer.cache(TASK, min_shards=6)
    assert not (tmp_path / "cut" / TASK / "COMPLETED").exists()
    with pytest.raises(SettingError, match="has not all of cached_span_corruption, split 'train': run `switch-tf ca"):
        training_dataset(TASK, LENGTHS, 4, 0)
    cache_writer.cache(TASK, min_shards=6)
    assert len(calls) == 2 + 2 + 1  # The first part was whole.
    names = {path.name for path in (tmp_path / "whole" / TASK).iterdir()}
    assert {path.name for path in (tmp_path / "cut" / TASK).iterdir()} == names
    for name in names:
        assert (tmp_path / "cut" / TASK / name).read_bytes() == (tmp_path / "whole" / TASK / name).read_bytes()
    cache_writer.cache(TASK, min_shards=6)
    assert len(calls) == 5 and "is there" in capsys.readouterr().out


def test_another_vocabulary_is_refused(text, tmp_path):
    settings(tmp_path)
    cache_writer.cache(TASK, splits=["train"])
    (tmp_path / "other").write_bytes(train_sentencepiece(tests.support.tiny_task.TOPICS, 390))
    vocabularies.select_vocabulary(str(tmp_path / "other"))
    for attempt in (
        lambda: training_dataset(TASK, LENGTHS, 4, 0),
        lambda: cache_writer.cache(TASK, splits=["validation"]),
    ):
        with pytest.raises(SettingError, match="cached_span_corruption was cached with another vocabulary"):
            attempt()
    vocabularies.select_vocabulary(str(text / "vocabulary"))
    training_dataset(TASK, LENGTHS, 4, 0)


def test_the_folder_keeps_the_vocabulary(text, tmp_path):
    settings(tmp_path)
    cache_writer.cache(TASK, vocabularies.VocabularyFile(str(text / "vocabulary")), splits=["validation"])
    kept = pathlib.Path(path_in(str(tmp_path)))
    assert kept.read_bytes() == (text / "vocabulary").read_bytes()
    vocabularies.select_vocabulary(str(kept))
    assert list(evaluation_batches(TASK, LENGTHS, 4, 1))


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
    settings(tmp_path)
    with pytest.raises(SettingError, match=message):
        cache_writer.cache(**arguments)


def test_a_cache_needs_a_folder(tmp_path):
    with pytest.raises(SettingError, match=r"needs --gin\.CACHE_DIR"):
        cache_writer.cache(TASK)
    gin.bind_parameter("Cache.use", True)
    with pytest.raises(SettingError, match="USE_CACHED = True needs CACHE_DIR"):
        training_dataset(TASK, LENGTHS, 4, 0)
    (tmp_path / "file").write_text("no folder")
    settings(tmp_path / "file")
    with pytest.raises(SettingError, match=r"CACHE_DIR = '.*file' cannot be written"):
        cache_writer.cache(TASK)


def test_a_task_without_a_place_for_a_cache_is_refused(tmp_path):
    settings(tmp_path)
    import tasks.multilingual

    assert cached_tasks.tasks_of(seqio.get_mixture_or_task("mc4_languages"))[0].name == tasks.multilingual.TASKS["af"]
    with pytest.raises(SettingError, match="mc4 cannot be cached"):
        cache_writer.cache("mc4")
    with pytest.raises(SettingError, match="mc4 cannot be cached: set it to False"):
        training_dataset("mc4", LENGTHS, 4, 0)


BEAM_MODULE = """
from tasks import vocabularies
from tasks.pretraining import add_span_corruption_task, text_files

vocabularies.select_vocabulary("{root}/vocabulary")
files = text_files({{"train": "{root}/train-*.txt", "validation": "{root}/held-out.txt"}})
add_span_corruption_task("{task}", files)
"""


@pytest.mark.slow
def test_beam_writes_the_same(text, tmp_path):
    """seqio's own job, in a process of its own: Beam is an extra."""
    pytest.importorskip("apache_beam")
    (tmp_path / "module_for_beam.py").write_text(BEAM_MODULE.format(root=text, task=TASK))
    paths = os.pathsep.join([str(tmp_path), str(pathlib.Path(__file__).parents[2])])
    job = [sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--module_import=module_for_beam"]
    job += [f"--tasks=^{TASK}$", f"--output_cache_dir={tmp_path / 'beam'}", "--min_shards=6"]
    done = subprocess.run(job, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings(tmp_path / "ours")
    cache_writer.cache(TASK, min_shards=6)
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
    assert cache_writer._serialise(example) == seqio.dict_to_tfexample(example).SerializeToString()


def test_of_a_mixture_each_task_has_the_splits_that_it_has(tmp_path):
    """As GLUE, some of whose tasks are for training and others for evaluation."""
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({"text": "a text " * 200}),
        splits=["train"],
        caching_permitted=True,
    )
    add_span_corruption_task("only_train", source)
    seqio.MixtureRegistry.add("half_held_out", [TASK, "only_train"], default_rate=1.0)
    settings(tmp_path)
    cache_writer.cache("half_held_out")
    for split in ("train", "validation"):
        assert cached_tasks.use_cached(seqio.get_mixture_or_task("half_held_out"), split)
    cache_writer.cache("half_held_out", splits=["validation"])
    with pytest.raises(SettingError, match="half_held_out has no split 'test'"):
        cache_writer.cache("half_held_out", splits=["test"])
