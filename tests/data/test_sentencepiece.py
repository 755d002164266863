"""`switch-tf vocabulary`: from files and from tasks."""

import gzip
import itertools
import json

import pytest
import sentencepiece

import tests.support.tiny_task
from switch_tf.data import sentencepiece as vocabulary
from switch_tf.errors import SettingError


def test_files_and_a_task_of_the_same_text_give_the_same_model(tmp_path, capsys):
    topics = [text for index, text in enumerate(tests.support.tiny_task.TOPICS) if index % 8]
    with gzip.open(tmp_path / "text.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"body": text}) for text in topics))
    files = [str(tmp_path / "*.jsonl.gz")]
    vocabulary.make_vocabulary(str(tmp_path / "files"), 400, files, key="body")
    vocabulary.make_vocabulary(str(tmp_path / "task"), 400, mixture_or_task="tiny_span_corruption")
    assert (tmp_path / "files").read_bytes() == (tmp_path / "task").read_bytes()
    assert sentencepiece.SentencePieceProcessor(str(tmp_path / "task")).vocab_size() == 400
    out = capsys.readouterr().out
    assert "400 pieces, 500 ids with the 100 sentinels" in out and "characters per token" in out
    assert "--gin.VOCAB_SIZE=512" in out


def test_reading_stops_where_it_was_told_to():
    endless = itertools.repeat("ten chars.")
    assert len(vocabulary.first_texts(endless, max_characters=95)) == 10
    assert len(vocabulary.first_texts(endless, max_characters=95, max_documents=3)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs files, or --task"),
        ({"files": ["absent-*.txt"]}, r"FILE = 'absent-\*\.txt' matches no file"),
        ({"mixture_or_task": "tiny_span_coruption"}, "did you mean 'tiny_span_corruption'"),
        ({"mixture_or_task": "empty_span_corruption"}, "The corpus is empty"),
        ({"mixture_or_task": "tiny_span_corruption", "num_pieces": 0}, "--num_pieces=0 must be at least 1"),
        ({"mixture_or_task": "tiny_span_corruption", "max_characters": 500}, "cannot be trained on this corpus"),
        ({"mixture_or_task": "tiny_span_corruption", "split": "test"}, "has no split 'test'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, options, message):
    with pytest.raises(SettingError, match=message):
        vocabulary.make_vocabulary(str(tmp_path / "model"), **{"num_pieces": 4000} | options)


def test_outputs_are_never_written_over_and_must_be_writable(tmp_path):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(SettingError, match="there exists already"):
        vocabulary.make_vocabulary(str(tmp_path / "there"), 400, mixture_or_task="tiny_span_corruption")
    with pytest.raises(SettingError, match="cannot be written"):
        path = str(tmp_path / "absent" / "model")
        vocabulary.make_vocabulary(path, 400, mixture_or_task="tiny_span_corruption")
