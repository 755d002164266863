"""From text files to a trained model by the command line: vocabulary, cache, training; and what goes wrong."""

import gzip
import pathlib

import pytest

import tests.support.tiny_task
from switch_tf.cli import main as command_line
from tests.support import launch
from tests.support.commands import call, fails

# The tiny run has its own number of pieces.
PIECES = ("--gin.TrainedVocabulary.num_pieces=%NUM_PIECES", "--gin.NUM_PIECES=400")
FILES = ("--gin_file=gin/runs/pretrain_files.gin", "--gin_file=tests/support/tiny.gin", *PIECES)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> pathlib.Path:
    """Text files of one's own."""
    root = tmp_path_factory.mktemp("text")
    (root / "train.txt").write_text("\n".join(" ".join(topic.split()) for topic in tests.support.tiny_task.TOPICS[1:]))
    (root / "held-out.txt").write_text(" ".join(tests.support.tiny_task.TOPICS[0].split()))
    return root


def bindings(text: pathlib.Path, **others: str) -> list[str]:
    values = {
        "MIXTURE_OR_TASK": '"files_span_corruption"',
        "TRAIN_FILES": f'"{text / "train.*"}"',
        "VALIDATION_FILES": f'"{text / "held-out.txt"}"',
        "TRAIN_STEPS": "2",
        "VOCABULARY": "@VocabularyFile()",
        "VocabularyFile.path": f'"{text / "vocabulary"}"',
    } | others
    if "VocabularyFile" not in values["VOCABULARY"]:
        del values["VocabularyFile.path"]  # A binding that nothing reads is refused.
    return [*FILES, *(f"--gin.{name}={value}" for name, value in values.items())]


def test_vocabulary_then_cache_then_training(capsys, text, tmp_path):
    out = call(capsys, "vocabulary", str(text / "train.txt"), "--num_pieces=400", f"--output={text / 'vocabulary'}")
    assert "500 ids with the 100 sentinels" in out
    cached = {"CACHE_DIR": f'"{tmp_path / "cache"}"'}
    out = call(capsys, "cache", *bindings(text, **cached), "--min_shards=4")
    assert "files_span_corruption, train: " in out and "in 4 files" in out and "is complete" in out
    cached |= {"USE_CACHED": "True", "MODEL_DIR": f'"{tmp_path / "run"}"'}
    command_line.main(["train", *bindings(text, **cached)])
    assert sorted(launch.losses(tmp_path / "run")) == ["1", "2"]

    # The same, of a vocabulary that the cache was not made with.
    call(capsys, "vocabulary", *FILES, "--task=tiny_span_corruption", "--num_pieces=390", f"--output={tmp_path}/other")
    other = {"VocabularyFile.path": f'"{tmp_path}/other"', "MODEL_DIR": f'"{tmp_path / "other_run"}"'}
    message = fails(capsys, "train", *bindings(text, **cached | other))
    assert "cache/files_span_corruption was cached with another vocabulary than this run's" in message
    message = fails(capsys, "cache", *bindings(text, **cached | other))
    assert "was made with another vocabulary than" in message and "CACHE_DIR" in message


def test_a_run_does_not_go_on_with_other_files(capsys, text, tmp_path):
    model = {"MODEL_DIR": f'"{tmp_path / "run"}"', "VOCABULARY": "@TrainedVocabulary()"}
    command_line.main(["train", *bindings(text, **model, TRAIN_STEPS="1")])
    model["TRAIN_FILES"] = f'"{text / "held-out.txt"}"'
    message = fails(capsys, "train", *bindings(text, **model))
    assert f"holds a run with TRAIN_FILES = '{text}/train.txt and 0 more, " in message
    assert f" not '{text}/held-out.txt and 0 more, " in message
    assert message.endswith("set it back, or use another MODEL_DIR.")


def test_a_broken_line_is_one_line(capsys, text, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": "tw\n')
    broken = {"TRAIN_FILES": f'"{tmp_path / "train.jsonl"}"', "MODEL_DIR": f'"{tmp_path / "run"}"'}
    broken |= {"VOCABULARY": "@TrainedVocabulary()"}
    # In the training data, and while a vocabulary is trained on them.
    for vocabulary in ({"TrainedVocabulary.task": '"tiny_span_corruption"'}, {}):
        message = fails(capsys, "train", *bindings(text, **broken, **vocabulary))
        assert message.startswith(f"{tmp_path / 'train.jsonl'}, line 2 is not JSON")
    message = fails(capsys, "vocabulary", str(tmp_path / "train.jsonl"), f"--output={tmp_path / 'vocabulary'}")
    assert "train.jsonl, line 2 is not JSON" in message
    (tmp_path / "train.json.gz").write_bytes(gzip.compress(b'{"text": "one"}\n')[:-3])
    message = fails(capsys, "vocabulary", str(tmp_path / "train.json.gz"), f"--output={tmp_path / 'vocabulary'}")
    assert "train.json.gz is cut off or damaged (gzip: its end is missing)" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vocabulary", "--output=unused"], "switch-tf vocabulary needs --gin_file"),
        (["vocabulary", "absent.txt", "--output=unused"], "FILE = 'absent.txt' matches no file"),
        (["cache", *FILES, '--gin.TRAIN_FILES="x"'], "switch-tf cache needs --gin.CACHE_DIR"),
        (["cache", *FILES], "TRAIN_FILES has no value"),
        (["cache", "--gin_file=gin/runs/pretrain.gin"], "MIXTURE_OR_TASK has no value"),
        (
            ["train", "--gin_file=gin/models/switch_base_8.gin", "--gin_file=gin/runs/pretrain_c4.gin"]
            + ["--gin.MODEL_DIR='unused'", "--gin.VOCABULARY_PATH='gs://switch-tf.invalid/sentencepiece.model'"],
            "gs://switch-tf.invalid/sentencepiece.model cannot be read",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert message in fails(capsys, *arguments)
    assert not pathlib.Path("unused").exists()
