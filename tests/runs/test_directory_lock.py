"""Two runs never share a model directory, and a dead run's lock does not outlive it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from switch_tf import storage
from switch_tf.errors import SettingError
from switch_tf.runs import directory_lock
from switch_tf.runs.directory_lock import Holder, held
from tests.support.launch import ROOT


def test_a_second_run_is_refused_and_told_who_holds_the_directory(tmp_path):
    holder = Holder.here()
    with held(str(tmp_path)):
        match = rf"is being trained by process {os.getpid()} on {holder.host} since {holder.since[:10]} "
        with pytest.raises(SettingError, match=match), held(str(tmp_path)):
            pass
        with held(str(tmp_path / "other")):
            pass
    with held(str(tmp_path)):
        pass
    assert not (tmp_path / "run.lock").exists()


def test_a_link_is_replaced(tmp_path):
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.write_text("mine")
    run.mkdir()
    (run / "run.lock").symlink_to(mine)
    with held(str(run)):
        assert not (run / "run.lock").is_symlink()
    assert mine.read_text() == "mine"


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.programs.holds_a_directory", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout.read(1) == b"1"
    with pytest.raises(SettingError, match=f"is being trained by process {process.pid} on "), held(str(tmp_path)):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with held(str(tmp_path)):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()


def test_only_the_first_process_of_a_run_holds_it(tmp_path, monkeypatch):
    with held(str(tmp_path)):
        monkeypatch.setenv("SWITCH_TF_PROCESSES", "a:1,b:1")
        monkeypatch.setenv("SWITCH_TF_PROCESS", "1")
        with held(str(tmp_path)):
            pass


def test_in_a_bucket(buckets, monkeypatch):
    monkeypatch.setattr(directory_lock, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(directory_lock, "_SETTLE_SECONDS", 0.1)
    buckets.make("locks")
    path = "gs://locks/run/run.lock"
    with held("gs://locks/run"):
        first = directory_lock._read(path)
        with (
            pytest.raises(SettingError, match=f"is being trained by process {os.getpid()} on "),
            held("gs://locks/run"),
        ):
            pass
        deadline = time.monotonic() + 60
        while directory_lock._read(path).beats == first.beats:
            assert time.monotonic() < deadline
    assert not storage.exists(path)
    # A run on another machine that gives no sign any more, and one on this machine that has ended.
    for host, process in (("elsewhere", 1), (first.host, 2**22 + 1)):
        storage.write_atomically(path, Holder(host, process, "2026-01-01 00:00:00+00:00", "x").to_json())
        with held("gs://locks/run"):
            assert directory_lock._read(path).process == os.getpid()
