"""Processes connect, agree, and end together."""

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from switch_tf.errors import SettingError
from switch_tf.partitioning.processes import EXIT_LOST, PROCESS, PROCESSES, Processes
from tests.support.addresses import free_addresses

ROOT = pathlib.Path(__file__).parents[2]


def start(action: str, count: int = 3) -> list[subprocess.Popen]:
    addresses = free_addresses(count)
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.programs.process_group", action],
            cwd=ROOT,
            env={PROCESSES: addresses, PROCESS: str(index), "PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def test_what_one_says_all_hear():
    for process in start("report"):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out == "[True, True, True, False]\n"


@pytest.mark.parametrize("victim", [0, 2])
def test_when_one_is_killed_the_others_end_with_a_sentence(victim):
    members = start("wait")
    for member in members:
        assert member.stdout.readline() == "here\n"
    members[victim].kill()
    killed_at = time.monotonic()
    for index, member in enumerate(members):
        _, err = member.communicate(timeout=60)
        if index != victim:
            assert member.returncode == EXIT_LOST
            assert err.startswith("\nswitch-tf: error: process ") and err.count("\n") == 2 and "Restart all" in err
    assert time.monotonic() - killed_at < 60


def test_an_error_of_all_keeps_its_own_sentence_and_status():
    """A process that ends first does not end the others while they end by themselves."""
    for member in start("fail"):
        _, err = member.communicate(timeout=60)
        assert (member.returncode, err) == (1, "mine\n")


def test_all_go_by_what_the_first_sees():
    for member in start("agree", 2):
        out, err = member.communicate(timeout=60)
        assert (member.returncode, out) == (0, "[0, 7]\n"), err


def test_a_stranger_at_the_port_is_let_go():
    addresses = tuple(free_addresses(2).split(","))
    first, second = (Processes(addresses, index) for index in range(2))
    waiting = threading.Thread(target=first.connect, args=(30,))
    waiting.start()
    port = int(addresses[0].rpartition(":")[2]) + 2
    for greeting in (b"GET / HTTP/1.1\r\n\r\n", b""):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(greeting)
    second.connect(30)
    waiting.join()
    said = threading.Thread(target=second.any_process, args=(True,))
    said.start()
    assert first.any_process(False)
    said.join()
    leaving = threading.Thread(target=second.close)
    leaving.start()
    first.close()
    leaving.join()


def test_a_process_that_does_not_come_is_named(monkeypatch):
    processes = Processes(tuple(free_addresses(2).split(",")), 0)
    with pytest.raises(SettingError, match=r"process 1 of 2 did not connect within 0 seconds"):
        processes.connect(timeout=0.1)
    processes = Processes(tuple(free_addresses(2).split(",")), 1)
    with pytest.raises(SettingError, match=r"the first process did not answer at localhost:\d+"):
        processes.connect(timeout=0.1)


def test_one_process_needs_nobody(monkeypatch):
    monkeypatch.delenv(PROCESSES, raising=False)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    processes = Processes.from_environment()
    processes.connect()
    assert (processes.count, processes.index, processes.any_process(True), processes.any_process(False)) == (
        1,
        0,
        True,
        False,
    )
    processes.close()


def test_tf_config_is_read_too(monkeypatch):
    monkeypatch.delenv(PROCESSES, raising=False)
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert Processes.from_environment().addresses == ("a:1", "b:1")
    assert Processes.from_environment().index == 1
    config["cluster"]["chief"] = ["c:1"]
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert Processes.from_environment().addresses == ("c:1", "a:1", "b:1")
    assert Processes.from_environment().index == 2
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert Processes.from_environment().count == 1
    config["task"]["type"] = "ps"
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(SettingError, match="TF_CONFIG is not of the form"):
        Processes.from_environment()


@pytest.mark.parametrize(
    ("addresses", "index", "sentence"),
    [
        ("a:1,b:1", "2", r"SWITCH_TF_PROCESS = 2 and SWITCH_TF_PROCESSES names 2 processes: it must be from 0 to 1"),
        ("a:1,b", "0", r"'b' is not of the form host:port"),
        ("a:1,a:3", "0", r"port plus 2, which another process uses"),
        ("a:1,b:1", "first", r"SWITCH_TF_PROCESS = 'first' must be a number"),
    ],
)
def test_mistakes_in_the_environment(monkeypatch, addresses, index, sentence):
    monkeypatch.setenv(PROCESSES, addresses)
    monkeypatch.setenv(PROCESS, index)
    with pytest.raises(SettingError, match=sentence):
        Processes.from_environment()
