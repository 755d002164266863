"""A run in a bucket is killed and resumed like one on a disk, and every command reads it; errors are sentences."""

import pathlib
import signal

import gin
import numpy as np
import pytest
import tensorflow as tf

from switch_tf import storage
from switch_tf.cli import main as command_line
from switch_tf.runs import directory_lock, gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import Run
from tests.support import launch
from tests.support.commands import fails

SETTINGS = ("TRAIN_STEPS=8", "CHECKPOINT_PERIOD=3", "EVAL_PERIOD=4", "LOG_PERIOD=1")
RUN, COPY = "gs://runs/tiny", "gs://copies/tiny"


@pytest.fixture(autouse=True)
def _healthy(buckets, monkeypatch):
    monkeypatch.setattr(directory_lock, "_SETTLE_SECONDS", 0.0)
    buckets.heal()
    buckets.make("refused", refused=True)
    buckets.make("read-only", read_only=True)


def main(*words: str) -> None:
    gin.clear_config()
    command_line.main(list(words))


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> pathlib.Path:
    """The model directory of the same run on a disk, which nobody disturbed."""
    model_dir = tmp_path_factory.mktemp("local") / "tiny"
    main(*launch.arguments(model_dir, *SETTINGS))
    return model_dir


@pytest.fixture(scope="module")
def copied(buckets, local) -> None:
    """The undisturbed run's directory, copied into a bucket."""
    buckets.make("copies")
    for path in filter(pathlib.Path.is_file, local.rglob("*")):
        buckets.put("copies", f"tiny/{path.relative_to(local)}", path.read_bytes())


@pytest.fixture(scope="module")
def resumed(buckets, local) -> dict[str, str]:
    """The CSV files of the run that was killed while it saved its second checkpoint, as they were then."""
    buckets.make("runs")
    vocabulary = "vocabulary/sentencepiece.model"
    buckets.put("runs", f"tiny/{vocabulary}", (local / vocabulary).read_bytes())
    killed = launch.run(*launch.arguments(RUN, *SETTINGS), program="tests.programs.killed_while_uploading")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = ("metrics.csv", "eval.csv", "experts.csv")
    before = {name: buckets.content("runs", f"tiny/{name}").decode() for name in names}
    main(*launch.arguments(RUN, *SETTINGS))
    return before


@pytest.mark.slow
def test_killed_and_resumed_in_a_bucket_it_is_the_run_on_a_disk(buckets, resumed, local):
    # What the killed run did after its only checkpoint was in the bucket already.
    assert list(launch.losses_of(resumed["metrics.csv"])) == ["1", "2", "3", "4", "5", "6"]
    assert resumed["eval.csv"].count("\n") == 2
    assert launch.losses_of(buckets.content("runs", "tiny/metrics.csv").decode()) == launch.losses(local)
    for name in ("eval.csv", "experts.csv"):
        assert buckets.content("runs", f"tiny/{name}").decode() == (local / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stalls", "seconds"), [((), 0.2), ((0.0,) * 40 + (70.0,), 0.0)], ids=["all requests", "one, for over a minute"]
)
def test_a_bucket_that_turns_slow(buckets, local, stalls, seconds):
    bucket = f"slow-{len(stalls)}"
    buckets.make(bucket)
    vocabulary = "vocabulary/sentencepiece.model"
    buckets.put(bucket, f"tiny/{vocabulary}", (local / vocabulary).read_bytes())
    buckets.slow_down(stalls, seconds)
    main(*launch.arguments(f"gs://{bucket}/tiny", *SETTINGS))
    buckets.heal()
    assert launch.losses_of(buckets.content(bucket, "tiny/metrics.csv").decode()) == launch.losses(local)
    assert buckets.content(bucket, "tiny/eval.csv").decode() == (local / "eval.csv").read_text()
    main("check", f"gs://{bucket}/tiny")


@pytest.mark.slow
def test_the_bucket_holds_what_a_disk_does(buckets, resumed, local):
    def kind(name: str) -> str:
        return "events.out.tfevents" if name.startswith("events") else name

    there = {kind(name.removeprefix("tiny/")) for name in buckets.names("runs", "tiny/") if not name.endswith("/")}
    assert there == {kind(str(path.relative_to(local))) for path in local.rglob("*") if path.is_file()}
    # One of each process that trained.
    assert len(buckets.names("runs", "tiny/events.out.tfevents")) == 2


def test_every_command_reads_it(buckets, copied, local, capsys):
    main("evaluate", f"--model_dir={COPY}", "--json", "--by_task")
    in_bucket = capsys.readouterr().out
    main("evaluate", f"--model_dir={local}", "--json", "--by_task")
    assert in_bucket == capsys.readouterr().out
    scores = (local / "evaluate_validation" / "scores.csv").read_text()
    assert buckets.content("copies", "tiny/evaluate_validation/scores.csv").decode() == scores
    assert buckets.names("copies", "tiny/evaluate_validation/events")
    buckets.put("copies", "texts.txt", b"The <extra_id_0> statement.\n")
    main("predict", f"--model_dir={COPY}", "--file=gs://copies/texts.txt")
    assert "statement." in capsys.readouterr().out
    main("report", COPY, "--output=gs://copies/report")
    assert "Wrote gs://copies/report/loss.png and gs://copies/report/experts.png." in capsys.readouterr().out
    assert buckets.content("copies", "report/loss.png").startswith(b"\x89PNG")
    assert b"Routers of tiny" in buckets.content("copies", "report/report.html")
    main("describe", f"--model_dir={COPY}", "--json")
    assert '"parameters"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bucket", "reason"),
    [
        ("none", "there is no bucket 'none': make it, in the region of the machines, or name another."),
        ("refused", "the bucket 'refused' refuses this account (HTTP response code 403"),
    ],
)
def test_a_bucket_that_is_not_there_or_refuses(capsys, bucket, reason):
    model_dir = f"gs://{bucket}/tiny"
    commands = (
        launch.arguments(model_dir),
        ["evaluate", *launch.TINY, f'--gin.MODEL_DIR="{model_dir}"'],
        ["predict", f"--model_dir={model_dir}", "<extra_id_0>"],
        ["report", model_dir],
    )
    for words in commands:
        assert fails(capsys, *words).startswith(f"MODEL_DIR = '{model_dir}': {reason}"), words


def test_a_bucket_that_may_only_be_read(capsys):
    said = fails(capsys, *launch.arguments("gs://read-only/tiny"))
    assert said.startswith("MODEL_DIR cannot be written (gs://read-only/tiny/run.lock): the bucket")
    assert "give it roles/storage.objectAdmin" in said and said.endswith("; no checkpoint had been made yet.")


def test_a_run_that_cannot_see_its_checkpoints_does_not_start_over(buckets, copied, capsys):
    before = {name: buckets.content("copies", name) for name in buckets.names("copies", "tiny/")}
    buckets.fail("GET", "prefix=tiny/checkpoints/", 1000)
    said = fails(capsys, *launch.arguments(COPY, *SETTINGS, "TRAIN_STEPS=9"))
    assert said.startswith(
        f"MODEL_DIR = '{COPY}': the bucket 'copies' does not answer, after several retries (HTTP resp"
    )
    assert said.endswith("run the same command again once it does.")
    assert before == {name: buckets.content("copies", name) for name in buckets.names("copies", "tiny/")}


def test_an_initial_checkpoint_in_a_bucket(copied, tmp_path, local):
    initial = (f'InitialVocabulary.checkpoint = "{COPY}"', "VOCABULARY = @InitialVocabulary()")
    gin_config.load(["tests/support/tiny.gin"], [f"MODEL_DIR = '{tmp_path}'", *initial])
    experiment = Experiment()
    experiment.install_vocabulary()
    run = Run(experiment)
    run.start_from(COPY)
    read = {name: variable.numpy() for name, variable in run.variables().items() if name != "step"}
    run.start_from(f"{local}/checkpoints/step_00000008")
    for name, values in read.items():
        np.testing.assert_array_equal(values, run.variables()[name].numpy(), err_msg=name)
    with pytest.raises(tf.errors.NotFoundError) as error:
        run.start_from("gs://none/tiny")
    assert "there is no bucket 'none'" in storage.refusal(error.value)
