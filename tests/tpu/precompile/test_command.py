"""`switch-tf tpu precompile`, with the real compiler of TPUs where it is installed (`make test` installs it)."""

import importlib.metadata
import json
import os
import re
import signal

import pytest

from switch_tf.cli.main import main
from switch_tf.errors import SettingError
from tests.test_house import ROOT
from tests.tpu.precompile.test_bounds import make_plan
from tpu.precompile import command
from tpu.precompile.report import report_of, report_text
from tpu.topologies import find_slice

TINY = [
    "--gin_file=gin/models/switch_tiny_8.gin",
    "--gin_file=gin/runs/pretrain.gin",
    "--gin_file=gin/precision/selective.gin",
    "--layout=gin/layouts/v3_8.gin",
    "--topology=v3-8",
]
NUM_SPARSE_LAYERS = 2
NUM_MICROBATCHES = 2

try:
    importlib.metadata.version("libtpu")
except importlib.metadata.PackageNotFoundError:
    HAS_COMPILER = False
else:
    HAS_COMPILER = True
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="libtpu is absent: pip install 'switch-tf[aot]'")


def run(capsys, *flags: str) -> str:
    main(["tpu", "precompile", *TINY, *flags])
    return capsys.readouterr().out


def refusal(capsys, *flags: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["tpu", "precompile", *TINY, *flags])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and not printed.out
    (line,) = printed.err.splitlines()
    return line.removeprefix("switch-tf: error: ")


@needs_compiler
def test_a_training_step_for_eight_cores(capsys):
    flags = ("--gin.BATCH_SIZE=64", f"--gin.NUM_MICROBATCHES={NUM_MICROBATCHES}")
    report = json.loads(run(capsys, *flags, "--json"))
    assert report["fits"] and report["num_devices"] == 8 and report["mesh"] == {"data": 8, "model": 1}

    rows = {(row["kind"], row["dimension"]): row for row in report["exchanges"]}
    # To the experts and back, and the same for the gradient, in each microbatch; and no expert is asked for.
    assert rows["all-to-all", "data"]["number"] == 4 * NUM_SPARSE_LAYERS * NUM_MICROBATCHES
    assert {kind for kind, _ in rows} == {"all-to-all", "all-reduce"}

    memory = report["bytes_per_device"]
    # The old state is given up for the new one.
    assert memory["given_up"] >= memory["weights"] + memory["slots"] > 0
    assert memory["weights"] + memory["slots"] < memory["needed"] < memory["limit"]

    flops = report["flops_per_device"]
    assert flops["of_tokens"] <= flops["of_slots"]
    assert 0.95 < flops["compiled"] / flops["of_slots"] < 1.15
    seconds = report["seconds_at_least"]
    assert seconds["step"] == max(seconds["products"], seconds["exchange"]) > 0
    assert report["tokens_per_second_at_most"] == pytest.approx(64 * (512 + 114) / seconds["step"])


@needs_compiler
@pytest.mark.slow
def test_a_larger_batch_in_more_microbatches_is_no_larger_program(capsys):
    sizes = []
    for batch_size in (64, 256):
        flags = (f"--gin.BATCH_SIZE={batch_size}", f"--gin.NUM_MICROBATCHES={batch_size // 32}", "--json")
        report = json.loads(run(capsys, *flags))
        sizes.append(report["bytes_per_device"]["program"])
    assert sizes[1] <= 1.02 * sizes[0]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("step", ["evaluate", "decode"])
def test_other_steps(capsys, step):
    report = json.loads(run(capsys, "--gin.BATCH_SIZE=64", f"--step={step}", "--json"))
    assert report["fits"] and report["bytes_per_device"]["slots"] == 0
    (exchanged,) = (row["number"] for row in report["exchanges"] if row["kind"] == "all-to-all")
    # Decoding goes through the decoder's sparse layer for each of 114 tokens.
    assert exchanged == 2 * {"evaluate": NUM_SPARSE_LAYERS, "decode": 1 + 114}[step]
    flops = report["flops_per_device"]
    assert 0.9 < flops["compiled"] / flops["of_slots"] < 1.15


@needs_compiler
def test_a_step_that_does_not_fit_says_by_how_much_and_what_helps(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["tpu", "precompile", *TINY, "--gin.BATCH_SIZE=65536", "--gin.NUM_MICROBATCHES=1"])
    assert stopped.value.code == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("train step of 65536 sequences of 512 + 114 tokens, on v3:2x2 (v3-8; data 8 x model 1)")
    assert second.startswith("does not fit: needs ") and " of 15.48 GiB on each device; " in second
    assert second.endswith("raise NUM_MICROBATCHES to 8")


@needs_compiler
def test_a_topology_that_would_end_the_compiler(capsys):
    line = refusal(
        capsys,
        *("--topology=v5e:16x32", "--gin.BATCH_SIZE=512", "--gin.NUM_MICROBATCHES=1", "--gin.NUM_EXPERTS=512"),
        "--gin.MESH_SHAPE='data:512,model:1'",
    )
    assert line.startswith("--topology=v5e:16x32 is no slice that the TPU's compiler knows (there is: v5e:1x1, ")


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        (["--gin.BATCH_SIZE=0"], "BATCH_SIZE = 0 must be at least 1."),
        (["--gin.TASK_FEATURE_LENGTHS={'inputs': 8}"], "TASK_FEATURE_LENGTHS = {'inputs': 8} has no 'targets'."),
        (["--gin.Experiment.batch_size=33"], "NUM_MICROBATCHES = 16 must divide BATCH_SIZE = 33"),
        (["--hlo=/no/such/folder/step.hlo"], "--hlo=/no/such/folder/step.hlo: there is no such folder"),
        (["--topology=v9-8"], "accelerator_type = 'v9-8' is no TPU slice"),
        (["--topology=v9:2x2"], "topology = 'v9:2x2': there is no TPU 'v9'"),
        (
            ["--topology=v4-32"],
            "MESH_SHAPE = 'data:8,model:1' has 8 devices and --topology=v4:2x2x4 16: make them equal",
        ),
        (["--gin.NUM_EXPERTS=12"], "MESH_SHAPE = 'data:8,model:1' splits experts into 8 parts, but NUM_EXPERTS = 12"),
        (["--gin.NUM_MICROBATCHES=3"], "NUM_MICROBATCHES = 3 must divide BATCH_SIZE = 2048"),
        (["--layout=gin/layouts/v3_9.gin"], "--gin_file=gin/layouts/v3_9.gin is not there"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_compiled(capsys, monkeypatch, flags, start):
    monkeypatch.setattr(command, "_COMPILERS", {})
    monkeypatch.setattr(command, "_run", lambda *_: pytest.fail("A process was started."))
    assert refusal(capsys, *flags).startswith(start)


def test_a_run_is_needed_for_its_optimizer(capsys, monkeypatch):
    monkeypatch.setattr(command, "_COMPILERS", {})
    with pytest.raises(SystemExit):
        main(["tpu", "precompile", TINY[0], "--topology=v5e:1x1"])
    assert (
        "Nothing sets Experiment.task_feature_lengths: add --gin_file=gin/runs/pretrain.gin" in capsys.readouterr().err
    )


def test_the_extra_that_is_absent(capsys, monkeypatch):
    monkeypatch.setattr(command, "_COMPILERS", {"no-such-compiler": "1.0"})
    assert refusal(capsys) == (
        "precompile needs no-such-compiler 1.0, which is absent here: pip install 'switch-tf[aot]'."
    )


def test_a_compiler_that_the_system_ends(tmp_path):
    with pytest.raises(SettingError, match="most likely for want of memory: try --effort=low"):
        command._run("tests.programs.ended_by_the_system", tmp_path, "compiling")


def test_want_of_memory_does_not_make_a_slice_unknown(tmp_path, monkeypatch):
    run = command._run
    monkeypatch.setattr(command, "_run", lambda _, *more: run("tests.programs.ended_by_the_system", *more))
    with pytest.raises(SettingError, match=r"^looking v4:2x2x2 up was ended by the system"):
        command._look_up(find_slice("v4:2x2x2"), tmp_path)


def test_a_signal_ends_the_compiler(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    children = []
    monkeypatch.setattr(command, "_wait", lambda child, clock: children.append(child) or os.kill(os.getpid(), 15))
    with pytest.raises(SystemExit) as stopped, command._ended_by_signals():
        command._run("http.server", tmp_path, "compiling")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    children[0].kill()


def test_the_compilers_are_those_of_the_extra():
    extra = re.search(r'"aot": \[(.*?)\]', (ROOT / "setup.py").read_text())[1]
    for package, version in command._COMPILERS.items():
        assert f'"{package}=={version}"' in extra


def test_a_compiler_that_fails(tmp_path):
    with pytest.raises(SettingError, match=r"is a defect of switch_tf or of its compilers: .*No module named"):
        command._run("tests.tpu.no_such_module", tmp_path, "compiling")


def test_a_refusal_for_another_reason_than_memory_is_not_taken_for_one():
    compiled = {"error": "INTERNAL: a defect", "seconds": 1.0, "host_bytes": 1}
    lowering = {"seconds": 1.0, "host_bytes": 1}
    with pytest.raises(SettingError, match="not for its memory: INTERNAL: a defect"):
        report_of(make_plan(), find_slice("v4:2x2x2"), "full", lowering, compiled, None)


@pytest.mark.parametrize(("step", "made_again"), [("train", "blocks"), ("evaluate", "none")])
def test_a_report_says_what_is_made_again_for_a_gradient(step, made_again):
    compiled = {"error": "RESOURCE_EXHAUSTED: Used 41.3G of 30.75G hbm", "seconds": 1.0, "host_bytes": 1}
    plan = make_plan(step=step, rematerialization="blocks")
    report = report_of(plan, find_slice("v4:2x2x2"), "full", {"seconds": 1.0, "host_bytes": 1}, compiled, None)
    assert report["rematerialization"] == made_again
    title = report_text(report).splitlines()[0]
    assert ("tokens, blocks made again for the gradient, on v4:2x2x2" in title) == (step == "train")
