"""Vocabularies: trained the same every time, kept in the run, never swapped."""

import pytest
import seqio

import tests.support.tiny_task
from switch_tf.errors import SettingError
from tasks import vocabularies
from tasks.vocabularies import RunVocabulary, TrainedVocabulary, VocabularyFile, train_sentencepiece

LINES = [line for text in tests.support.tiny_task.TOPICS for line in text.splitlines()]


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_sentencepiece(LINES, 400)


def test_training_again_gives_the_same_bytes(model):
    assert train_sentencepiece(LINES, 400) == model


def test_special_ids_and_sentinels(model, tmp_path):
    (tmp_path / "given.model").write_bytes(model)
    VocabularyFile(str(tmp_path / "given.model")).install(str(tmp_path / "run"))
    vocabulary = RunVocabulary()
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    assert vocabulary.vocab_size == 500
    assert vocabulary.encode("<extra_id_0>")[-1] == 499 and vocabulary.encode("<extra_id_99>")[-1] == 400


@pytest.mark.parametrize("text", ["the assert statement", "naïve 日本語 Привет", "tabs and emoji 🤖"])
def test_any_text_survives(model, tmp_path, text):
    (tmp_path / "given.model").write_bytes(model)
    VocabularyFile(str(tmp_path / "given.model")).install(str(tmp_path / "run"))
    vocabulary = RunVocabulary()
    ids = vocabulary.encode(text)
    assert vocabulary.unk_id not in ids
    assert vocabulary.decode(ids) == text
    assert vocabulary.encode_tf(text).numpy().tolist() == ids


def test_the_task_follows_the_selected_file(model, tmp_path):
    other = train_sentencepiece(LINES, 360)
    for name, contents, size in (("first", model, 500), ("second", other, 460)):
        (tmp_path / name).write_bytes(contents)
        vocabularies.select_vocabulary(str(tmp_path / name))
        task = seqio.get_mixture_or_task("tiny_span_corruption")
        assert task.output_features["targets"].vocabulary.vocab_size == size


def test_a_run_keeps_its_vocabulary(tmp_path):
    trained = TrainedVocabulary("tiny_span_corruption", num_pieces=360)
    path = trained.install(str(tmp_path))
    before = (tmp_path / "vocabulary" / "sentencepiece.model").stat().st_mtime_ns
    assert trained.install(str(tmp_path)) == path
    assert (tmp_path / "vocabulary" / "sentencepiece.model").stat().st_mtime_ns == before


def test_another_vocabulary_for_a_run_is_refused(model, tmp_path):
    (tmp_path / "first.model").write_bytes(model)
    (tmp_path / "second.model").write_bytes(train_sentencepiece(LINES, 360))
    VocabularyFile(str(tmp_path / "first.model")).install(str(tmp_path / "run"))
    with pytest.raises(SettingError, match=r"was made with another vocabulary than .*second\.model"):
        VocabularyFile(str(tmp_path / "second.model")).install(str(tmp_path / "run"))
    assert (tmp_path / "run" / "vocabulary" / "sentencepiece.model").read_bytes() == model


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"The vocabulary .*absent cannot be read"):
        VocabularyFile(str(tmp_path / "absent")).install(str(tmp_path / "run"))
    (tmp_path / "text").write_text("no model at all")
    with pytest.raises(SettingError, match="cannot be read"):
        VocabularyFile(str(tmp_path / "text")).install(str(tmp_path / "run"))


def test_a_run_whose_vocabulary_is_broken_says_so(tmp_path):
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "sentencepiece.model").write_text("no model at all")
    TrainedVocabulary("tiny_span_corruption").install(str(tmp_path))
    with pytest.raises(SettingError, match=r"sentencepiece\.model cannot be read as a SentencePiece model"):
        RunVocabulary().encode("text")


def test_a_corpus_that_is_too_small_is_refused():
    with pytest.raises(SettingError, match="corpus is empty"):
        train_sentencepiece(["", "  "], 400)
    with pytest.raises(SettingError, match="A vocabulary of 4000 pieces cannot be trained"):
        train_sentencepiece(["one short line of text"], 4000)


def test_no_vocabulary_is_said(monkeypatch):
    monkeypatch.setattr(vocabularies, "_selected_file", None)
    with pytest.raises(SettingError, match="No vocabulary is selected"):
        RunVocabulary().encode("text")
