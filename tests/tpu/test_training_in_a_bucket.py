"""Training with MODEL_DIR = gs://..., through TensorFlow's own way to Cloud Storage, to a bucket on loopback."""

import os
import pathlib
import subprocess
import sys

import pytest

from switch_tf.training.records import read_csv
from tests.tpu import fake_bucket

ROOT = pathlib.Path(__file__).parents[2]


def train(model_dir: str, steps: int, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-m", "switch_tf.main", "train", "--gin_file=tests/tiny.gin"]
    command += [f"--gin.MODEL_DIR='{model_dir}'", f"--gin.TRAIN_STEPS={steps}", "--gin.CHECKPOINT_PERIOD=5"]
    command += ["--gin.NUM_EVAL_BATCHES=1", "--gin.KEEP_CHECKPOINTS=2"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_run_in_a_bucket_resumes_and_is_the_run_on_a_disk(tmp_path):
    folder = tmp_path / "buckets" / "the-bucket"
    folder.mkdir(parents=True)
    with fake_bucket.serving_tensorflow(folder.parent, tmp_path) as environment:
        train("gs://the-bucket/runs/mine", 12, environment)
        assert "from step 12." in train("gs://the-bucket/runs/mine", 16, environment)
    train(str(tmp_path / "local"), 16)
    for name in ("metrics.csv", "eval.csv"):
        in_bucket, on_disk = (read_csv(str(path / name)) for path in (folder / "runs" / "mine", tmp_path / "local"))
        steps = [row["step"] for row in in_bucket]
        assert len(steps) == len(set(steps)) >= 2
        rows = {row["step"]: row["neg_log_perplexity"] for row in on_disk}
        common = [row for row in in_bucket if row["step"] in rows]
        assert len(common) >= 2
        assert [row["neg_log_perplexity"] for row in common] == [rows[row["step"]] for row in common]
    assert [row["step"] for row in read_csv(str(folder / "runs/mine/metrics.csv"))] == [str(n) for n in range(1, 17)]
    kept = sorted(path.parent.name for path in (folder / "runs/mine/checkpoints").glob("*/manifest.json"))
    assert kept == ["step_00000015", "step_00000016"]
    assert not list((folder / "runs" / "mine").rglob("*.writing"))
