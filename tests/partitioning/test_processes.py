"""Processes find each other, agree, and end together."""

import json
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from switch_tf.errors import SettingError
from switch_tf.partitioning.processes import EXIT_LOST, PROCESS, PROCESSES, Processes

ROOT = pathlib.Path(__file__).parents[2]

MEMBER = """
import sys, time
from switch_tf.partitioning.processes import Processes
processes = Processes.from_environment()
processes.connect(patience=20)
"""


def free_addresses(count: int) -> str:
    """Addresses on this machine whose ports, and the one after them, were free a moment ago."""
    with socket.create_server(("", 0)) as server:
        first = server.getsockname()[1]
    return ",".join(f"localhost:{first + index}" for index in range(count))


def start(program: str, count: int = 3) -> list[subprocess.Popen]:
    addresses = free_addresses(count)
    return [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER + program],
            cwd=ROOT,
            env={PROCESSES: addresses, PROCESS: str(index), "PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def test_what_one_says_all_hear():
    said = "print([processes.any(processes.index == step) for step in range(4)]); processes.close()"
    for process in start(said):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out == "[True, True, True, False]\n"


@pytest.mark.parametrize("victim", [0, 2])
def test_when_one_is_killed_the_others_end_with_a_sentence(victim):
    members = start("processes.any(False); print('here', flush=True); time.sleep(600)")
    for member in members:
        assert member.stdout.readline() == "here\n"
    members[victim].kill()
    killed_at = time.monotonic()
    for index, member in enumerate(members):
        _, err = member.communicate(timeout=60)
        if index != victim:
            assert member.returncode == EXIT_LOST
            assert err.startswith("\nswitch-tf: error: process ") and err.count("\n") == 2 and "Start all" in err
    assert time.monotonic() - killed_at < 60


def test_a_process_that_does_not_come_is_named(monkeypatch):
    processes = Processes(tuple(free_addresses(2).split(",")), 0)
    with pytest.raises(SettingError, match=r"process 1 of 2 did not come within 0 seconds"):
        processes.connect(patience=0.1)
    processes = Processes(tuple(free_addresses(2).split(",")), 1)
    with pytest.raises(SettingError, match=r"the first process does not answer at localhost:\d+"):
        processes.connect(patience=0.1)


def test_one_process_needs_nobody(monkeypatch):
    monkeypatch.delenv(PROCESSES, raising=False)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    processes = Processes.from_environment()
    processes.connect()
    assert (processes.count, processes.index, processes.any(True), processes.any(False)) == (1, 0, True, False)
    processes.close()


def test_tf_config_is_read_too(monkeypatch):
    monkeypatch.delenv(PROCESSES, raising=False)
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert Processes.from_environment().addresses == ("a:1", "b:1")
    assert Processes.from_environment().index == 1
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(SettingError, match="TF_CONFIG is not of the form"):
        Processes.from_environment()


@pytest.mark.parametrize(
    ("addresses", "index", "sentence"),
    [
        ("a:1,b:1", "2", r"SWITCH_TF_PROCESS = 2 and SWITCH_TF_PROCESSES names 2 processes: it must be from 0 to 1"),
        ("a:1,b", "0", r"'b' is not of the form host:port"),
        ("a:1,b:1", "first", r"SWITCH_TF_PROCESS = 'first' must be a number"),
    ],
)
def test_mistakes_in_the_environment(monkeypatch, addresses, index, sentence):
    monkeypatch.setenv(PROCESSES, addresses)
    monkeypatch.setenv(PROCESS, index)
    with pytest.raises(SettingError, match=sentence):
        Processes.from_environment()
