"""C4 from TFDS, from the hub's files, and text files of the user's own by gin alone."""

import gzip
import json
import pathlib
from collections.abc import Iterator

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

import switch_tf.runs.loop  # noqa: F401 (registers `train`)
import tasks.c4
import tasks.files  # noqa: F401 (registers a task)
from switch_tf.data.resume_settings import data_settings
from switch_tf.data.sentencepiece import train_sentencepiece
from switch_tf.data.training_batches import TrainingBatches, training_dataset
from switch_tf.errors import SettingError, sentence_inside
from switch_tf.runs import gin_config
from tasks import vocabularies
from tasks.pretraining import num_spans
from tests.support import tiny_c4

LENGTHS = {"inputs": 128, "targets": 29}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory) -> Iterator[pathlib.Path]:
    """A folder with C4 as TFDS has it, in `c4_files` as the hub has it; its vocabulary is selected."""
    root = tmp_path_factory.mktemp("c4")
    tiny_c4.make_c4(root)
    tiny_c4.make_c4_files(root / "c4_files")
    (root / "vocabulary").write_bytes(train_sentencepiece([tiny_c4.document("en", i) for i in range(50)], 280))
    vocabularies.select_vocabulary(str(root / "vocabulary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(root))
        yield root


def texts(task: str, split: str) -> list[str]:
    dataset = seqio.get_mixture_or_task(task).source.get_dataset(split, shuffle=False)
    return sorted(example["text"].decode() for example in dataset.as_numpy_iterator())


def expected(indices) -> list[str]:
    return sorted(tiny_c4.document("en", index) for index in indices)


@pytest.mark.parametrize("task", ["c4_span_corruption", "c4_v310_span_corruption", "c4_files_span_corruption"])
def test_c4_gives_every_document_and_full_examples(folder, task):
    gin_config.load(["gin/runs/pretrain_c4.gin"], [f'C4_FOLDER = "{folder / "c4_files"}"'])
    assert texts(task, "train") == expected(range(200))
    assert texts(task, "validation") == expected(tiny_c4.HELD_OUT)
    batch = next(iter(training_dataset(task, LENGTHS, 8, 0)))
    assert {name: tuple(value.shape) for name, value in batch.items()}["encoder_input_tokens"] == (8, 128)
    assert batch["decoder_target_tokens"].shape == (8, 29) and batch["decoder_target_tokens"].dtype == tf.int32
    assert np.all(batch["encoder_input_tokens"].numpy() != 0, axis=1).sum() >= 7  # One may be the end of a text.


def test_what_is_not_there_is_said(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
        with pytest.raises(
            SettingError, match=rf"c4/en:3\.1\.0 is not prepared in {tmp_path}.*Beam job.* hub's json\.gz"
        ):
            training_dataset("c4_span_corruption", LENGTHS, 8, 0)
    with pytest.raises(SettingError, match="needs C4_FOLDER"):
        training_dataset("c4_files_span_corruption", LENGTHS, 8, 0)
    gin_config.load(["gin/runs/pretrain_c4.gin"], ['C4_FOLDER = "nowhere"'])
    with pytest.raises(SettingError, match=r"C4_FOLDER = 'nowhere/c4-train\.\*\.json\.gz' matches no file"):
        training_dataset("c4_files_span_corruption", LENGTHS, 8, 0)


@pytest.mark.parametrize(("inputs", "spans"), [(512, 28), (1024, 57), (2048, 114)])
def test_spans_of_an_example(inputs, spans):
    assert num_spans(inputs) == spans


def test_more_spans_than_sentinels_are_refused():
    training_dataset("c4_span_corruption", {"inputs": 1809, "targets": 402}, 8, 0)
    for inputs in (1810, 2048):
        with pytest.raises(SettingError, match=r"\['inputs'\] = \d+ has 1\d\d spans .* 100 sentinels: set it to 1809"):
            training_dataset("c4_span_corruption", {"inputs": inputs, "targets": 500}, 8, 0)


@pytest.fixture
def files(tmp_path) -> pathlib.Path:
    """Documents in plain text and JSON lines, gzipped and not."""
    documents = [tiny_c4.document("en", index) for index in range(800)]
    as_json = [json.dumps({"text": text}) for text in documents]
    (tmp_path / "a.txt").write_text("\n".join(documents[:200]) + "\n\n")
    (tmp_path / "b.jsonl").write_text("\n\n".join(as_json[200:400]))
    with gzip.open(tmp_path / "c.json.gz", "wt") as file:
        file.write("\n".join(as_json[400:600]))
    with gzip.open(tmp_path / "d.txt.gz", "wt") as file:
        file.write("\n".join(documents[600:]))
    return tmp_path


def test_files_by_gin_alone(files):
    gin_config.load(["gin/runs/pretrain_files.gin"], [f'TRAIN_FILES = "{files}/*"'])
    train, held_out = texts("files_span_corruption", "train"), texts("files_span_corruption", "validation")
    assert sorted(train + held_out) == expected(range(800))
    assert 0 < len(held_out) < 30
    batch = next(iter(training_dataset("files_span_corruption", LENGTHS, 8, 0)))
    assert batch["encoder_input_tokens"].shape == (8, 128) and batch["decoder_target_tokens"].shape == (8, 29)
    assert {tensor.dtype for tensor in batch.values()} == {tf.int32}


def test_validation_files_of_their_own(files):
    bindings = [f'TRAIN_FILES = ["{files}/a.txt", "{files}/b.*"]', f'VALIDATION_FILES = "{files}/c.json.gz"']
    gin_config.load(["gin/runs/pretrain_files.gin"], bindings)
    assert texts("files_span_corruption", "train") == expected(range(400))
    assert texts("files_span_corruption", "validation") == expected(range(400, 600))


def test_what_a_run_must_keep(files, folder):
    """Names, sizes and numbers of files; a pattern that finds the same ones is the same."""

    def kept(*bindings: str) -> dict[str, object]:
        seqio.utils._list_files_for_glob.cache_clear()  # A process sees the files that it saw first.
        gin.clear_config()
        gin_config.load(["gin/runs/pretrain_files.gin"], bindings)
        return data_settings("files_span_corruption")

    first = kept(f'TRAIN_FILES = "{files}/a.*"')
    assert first.keys() == {"USE_CACHED", "TRAIN_FILES"}
    assert first["TRAIN_FILES"].startswith(f"{files}/a.txt and 0 more, {(files / 'a.txt').stat().st_size:,} bytes (")
    assert kept(f'TRAIN_FILES = ["{files}/a.txt"]') == first == json.loads(json.dumps(first))
    both = kept(f'TRAIN_FILES = "{files}/a.*"', f'VALIDATION_FILES = "{files}/b.jsonl"')
    assert both["TRAIN_FILES"] == first["TRAIN_FILES"] and "/b.jsonl and 0 more" in both["VALIDATION_FILES"]
    (files / "a.u").write_text("one more\n")
    assert "and 1 more" in kept(f'TRAIN_FILES = "{files}/a.*"')["TRAIN_FILES"]
    (files / "a.u").write_text("others\nto\n")
    other = kept(f'TRAIN_FILES = "{files}/a.*"')["TRAIN_FILES"]
    (files / "a.u").rename(files / "a.v")
    renamed = kept(f'TRAIN_FILES = "{files}/a.*"')["TRAIN_FILES"]
    assert other != renamed and other.split("(")[0] == renamed.split("(")[0]
    gin.clear_config()
    gin_config.load(["gin/runs/pretrain_c4.gin"], [f'C4_FOLDER = "{folder / "c4_files"}"'])
    assert "/c4-train.00000-of-00002.json.gz and 2 more" in data_settings("c4_files_span_corruption")["C4_FOLDER"]


def test_files_that_are_gone_are_said(tmp_path):
    """A position in the data opens the files that were being read."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("\n".join(tiny_c4.document("en", index, 8) for index in range(4000)))
    gin_config.load(["gin/runs/pretrain_files.gin"], [f'TRAIN_FILES = "{tmp_path}/?"'])
    batches = TrainingBatches("files_span_corruption", LENGTHS, 8, 0)
    next(batches)
    positions = batches.positions()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / f"{name}.moved")
    with pytest.raises(SettingError, match=r"was reading .*/[ab] of 'files_span_corruption', which no longer exists"):
        batches.restore(positions.__getitem__)


def test_an_iterator_over_json_resumes_exactly(files, tmp_path):
    gin_config.load(["gin/runs/pretrain_files.gin"], [f'TRAIN_FILES = "{files}/*"'])

    def fresh():
        return iter(training_dataset("files_span_corruption", LENGTHS, 8, 0))

    iterator = fresh()
    for _ in range(30):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    again = fresh()
    tf.train.Checkpoint(iterator=again).read(path).assert_consumed()
    for _ in range(5):
        ours, theirs = next(iterator), next(again)
        np.testing.assert_array_equal(ours["encoder_input_tokens"], theirs["encoder_input_tokens"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "tw', "line 3 is not JSON"),
        ('{"txt": "two"}', "line 3 is not a JSON object with a string under 'text'"),
        ("[1, 2]", "line 3 is not a JSON object"),
        ('{"text": 3}', "line 3 is not a JSON object"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n' + line + '\n{"text": "four"}\n')
    gin_config.load(["gin/runs/pretrain_files.gin"], [f'TRAIN_FILES = "{tmp_path}/a.jsonl"'])
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        texts("files_span_corruption", "train")
    assert f"{tmp_path}/a.jsonl, {message}" in sentence_inside(raised.value)


def test_no_files_are_said(tmp_path):
    gin_config.load(["gin/runs/pretrain_files.gin"], [f'TRAIN_FILES = "{tmp_path}/*.txt"'])
    with pytest.raises(SettingError, match=r"TRAIN_FILES = '.*\*\.txt' matches no file"):
        training_dataset("files_span_corruption", LENGTHS, 8, 0)


def test_sentinels_of_a_model_that_has_its_own(tmp_path):
    """mC4's vocabulary ("250000.100extra") has the sentinels among its pieces; C4's has not."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(
        train_sentencepiece([tiny_c4.document("en", i) for i in range(50)], 280)
    )
    for index in reversed(range(100)):
        kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
        model.pieces.add(piece=f"▁<extra_id_{index}>", score=0.0, type=kind)
    (tmp_path / "with_sentinels").write_bytes(model.SerializeToString())
    before = vocabularies._selected_file
    vocabularies.select_vocabulary(str(tmp_path / "with_sentinels"))
    vocabulary = vocabularies.RunVocabulary()
    assert (vocabulary.vocab_size, vocabulary.num_sentinels) == (380, 100)
    assert vocabulary.encode("<extra_id_0>")[-1] == 379
    vocabularies.select_vocabulary(before)
    assert (vocabulary.vocab_size, vocabulary.num_sentinels) == (380, 100)
