"""CSV records never hold two rows for one step."""

import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.runs.recorder import CsvRecord, RunRecorder, read_csv


def test_rows_after_the_resumed_step_are_forgotten(tmp_path):
    path = str(tmp_path / "metrics.csv")
    record = CsvRecord(path, ["loss"], 0)
    record.append([{"step": step, "loss": step / 10} for step in range(1, 8)])
    resumed = CsvRecord(path, ["loss"], 4)
    resumed.append([{"step": 5, "loss": 0.55}])
    rows = read_csv(path)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[-1]["loss"] == "0.55"


def test_a_line_that_a_kill_cut_off_is_ignored(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.")
    assert read_csv(str(path)) == [{"step": "1", "loss": "0.5"}]


def test_floats_survive_to_the_last_bit(tmp_path):
    path = str(tmp_path / "metrics.csv")
    value = float(np.float32(1) / np.float32(3))
    CsvRecord(path, ["loss"], 0).append([{"step": 1, "loss": value}])
    CsvRecord(path, ["loss"], 1)
    assert float(read_csv(path)[0]["loss"]) == value


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(SettingError, match="MODEL_DIR cannot be written"):
        CsvRecord(str(tmp_path / "absent" / "metrics.csv"), ["loss"], 0)


def test_scores_of_tasks_have_a_row_for_each_metric(tmp_path, tiny_config):
    scores = {"squad": {"em": 61.5, "f1": 70.25}, "glue": {"average": 83.0}}
    recorder = RunRecorder(str(tmp_path), tiny_config, 0)
    for step in (200, 400):
        recorder.write_task_scores(step, scores)
    RunRecorder(str(tmp_path), tiny_config, 200)
    assert (tmp_path / "task_eval.csv").read_text().splitlines() == [
        "step,task,metric,value",
        "200,squad,em,61.5",
        "200,squad,f1,70.25",
        "200,glue,average,83.0",
    ]
