"""Vocabularies: trained the same every time, kept in the run, never swapped."""

import pytest
import sentencepiece
import seqio
import tensorflow as tf

import tests.support.tiny_task
from switch_tf.data.sentencepiece import cut
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


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("print(<extra_id_0>)", ["print(", 0, ")"]),
        ("<extra_id_0><extra_id_1>", [0, 1]),
        ("文字<extra_id_0>", ["文字", 0]),
        ("a <extra_id_1>ly b", ["a", 1, "ly b"]),
        ("\tx\n<extra_id_99>", ["x", 99]),
    ],
)
def test_a_sentinel_is_one_wherever_it_stands(model, tmp_path, text, parts):
    (tmp_path / "given.model").write_bytes(model)
    VocabularyFile(str(tmp_path / "given.model")).install(str(tmp_path / "run"))
    vocabulary = RunVocabulary()
    # The pieces of the text between, which follow a sentinel without a space of their own.
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    expected: list[int] = []
    for index, part in enumerate(parts):
        if isinstance(part, int):
            expected.append(len(processor) + 99 - part)
        else:
            ids = processor.encode(part if index == 0 else f"|{part}")
            expected += ids if index == 0 else ids[len(processor.encode("|")) :]
    assert list(vocabulary.encode(text)) == expected
    assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == expected


def installed(folder, **options):
    """Trains a vocabulary with SentencePiece's own defaults but for `options`, and installs it in a run."""
    path = folder / "other.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES),
            model_writer=file,
            vocab_size=120,
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
    VocabularyFile(str(path)).install(str(folder / "run"))
    return RunVocabulary()


@pytest.mark.parametrize(
    ("options", "ids"), [({}, "-1, 2 and 0"), ({"pad_id": 3, "bos_id": -1, "eos_id": 1, "unk_id": 2}, "3, 1 and 2")]
)
def test_a_model_with_other_special_ids_is_refused(tmp_path, options, ids):
    with pytest.raises(SettingError, match=f"has the ids {ids} for padding, end and unknown.*pad_id=0, eos_id=1"):
        installed(tmp_path, **options).load_model()


@pytest.mark.parametrize("symbols", [["<extra_id_1>", "<extra_id_0>"], ["<extra_id_0>"]])
def test_sentinels_in_another_order_or_place_are_refused(tmp_path, symbols):
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    with pytest.raises(SettingError, match="as its piece 3, but sentinels must be its last pieces"):
        installed(tmp_path, **ids, user_defined_symbols=symbols).load_model()


def test_long_lines_are_cut_not_left_out():
    assert cut("a b") == ["a b"]
    line = "word " * 40_000
    parts = cut(line)
    assert "".join(parts) == line and all(len(part.encode()) <= 1 << 16 for part in parts)
    assert all(part.endswith(" ") for part in parts[:-1])
    characters = "文" * 100_000
    assert "".join(cut(characters)) == characters and all(len(part.encode()) <= 1 << 16 for part in cut(characters))
    # A corpus of one long line has a vocabulary. (SentencePiece takes quadratic time where long lines repeat.)
    corpus = " ".join(LINES)
    assert len(corpus.encode()) > 1 << 16 and train_sentencepiece([corpus], 400)
