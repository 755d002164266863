"""Long runs: nothing grows, and kills change nothing. `make soak` runs the same for 20,000 steps and 100 kills."""

import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest

from benchmarks import soak
from benchmarks.process_usage import Usage, by_tenths, growth_after_the_first, usage_of
from tests.support import commands, launch


def open_files() -> list[str]:
    """What this process has open; a directory that is being listed for this is gone when it is looked up."""
    folder = pathlib.Path("/proc/self/fd")
    return sorted(os.readlink(name) for name in folder.iterdir() if name.exists())


def test_a_run_leaves_no_thread_and_no_open_file(tiny_run, tmp_path):
    model_dir = shutil.copytree(tiny_run, tmp_path / "run")
    threads, files = set(threading.enumerate()), open_files()
    commands.run(*launch.arguments(model_dir, "TRAIN_STEPS=13"))
    for thread in set(threading.enumerate()) - threads:
        thread.join(60)
        assert not thread.is_alive(), thread
    gc.collect()
    assert open_files() == files


def test_a_process_is_sampled():
    here = usage_of(os.getpid(), 7)
    assert here.step == 7 and here.threads >= threading.active_count()
    (status,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line]
    assert here.resident == pytest.approx(int(status.split()[1]) * 1024, rel=0.05)
    with open(__file__):
        assert usage_of(os.getpid(), 7).open_files == here.open_files + 1
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert usage_of(ended.pid, 0) is None


def test_growth_is_that_of_medians_after_the_first_tenth():
    usages = [Usage(step, 1000 + (step >= 90) * 30 + (step % 5 == 0) * 500, 6 + step % 2, 9) for step in range(100)]
    summary = by_tenths([Usage(0, 10, 1, 1), *usages], 100)
    assert summary == {"resident": [1000] * 9 + [1030], "open_files": [1] + [6] * 9, "threads": [1] + [9] * 9}
    assert growth_after_the_first(summary["resident"]) == pytest.approx(0.03)
    assert growth_after_the_first(summary["threads"]) == 0


def test_moments_of_kills():
    plan = soak.Plan(20_000, 100, 10, 0, (), ())
    moments = plan.moments()
    kinds = [kind for kind, _ in moments]
    assert (kinds.count("write"), kinds.count("start"), kinds.count("step")) == (10, 10, 80)
    steps = [step for _, step in moments]
    assert steps == sorted(steps) and steps[0] >= 1 and steps[-1] < 18_000
    assert plan.moments() == moments


def test_what_is_being_written_is_found(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for step in (50, 100):
        (checkpoints / f"step_{step:08d}").mkdir(parents=True)
    (checkpoints / "step_00000050" / "manifest.json").touch()
    ((name, _),) = soak.unfinished(tmp_path)
    assert name == "step_00000100"
    assert soak.last_step(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("step,loss\n")
    assert soak.last_step(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("step,loss\n9,1.0\n10,0.9\n11,0")
    assert soak.last_step(tmp_path) == 10


def test_a_difference_is_found(tiny_run, tmp_path):
    other = shutil.copytree(tiny_run, tmp_path / "other")
    assert all(soak.comparison(tiny_run, other, 12).values())
    text = (other / "eval.csv").read_text()
    (other / "eval.csv").write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + "\n")
    shutil.rmtree(other / "checkpoints" / "step_00000012")
    shutil.copytree(other / "checkpoints" / "step_00000008", other / "checkpoints" / "step_00000012")
    results = soak.comparison(tiny_run, other, 12)
    assert [name for name, is_equal in results.items() if not is_equal] == [
        "eval.csv is equal",
        "weights and slots are equal",
        "every file is whole",  # The manifest is of step 8.
    ]


@pytest.mark.slow
def test_a_sample_of_the_soak(tmp_path):
    command = [sys.executable, "-m", "benchmarks.soak", f"--folder={tmp_path}", "--steps=300", "--kills=3"]
    command += ["--kills_in_writes=1"]
    done = subprocess.run(command, cwd=launch.ROOT, capture_output=True, text=True, check=False)
    report = json.loads((tmp_path / "report.json").read_text())
    # In so few steps a process has not taken all the memory and all the threads that it needs.
    failed = {name for name, passed in report["checks"].items() if not passed}
    assert failed <= {"memory grows by less than 2 %", "no thread is left"}, done.stdout + done.stderr
    assert (report["kills"], report["kills_inside_writes"]) == (3, 1)
    # All that was done is not done again.
    again = subprocess.run(command, cwd=launch.ROOT, capture_output=True, text=True, check=False)
    assert "kill " not in again.stdout and json.loads((tmp_path / "report.json").read_text()) == report
