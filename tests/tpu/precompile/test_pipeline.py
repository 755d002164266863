"""`switch-tf tpu precompile`, with the real TPU compiler if it is installed (`make test` installs it)."""

import dataclasses
import json
import os
import re
import signal

import pytest

from switch_tf.checkpoints.folder import checkpoints_of
from switch_tf.checkpoints.manifest import Manifest
from switch_tf.cli.main import main
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.planning.costs import description
from switch_tf.runs import gin_config
from tests.support.compilers import needs_tpu_compiler
from tests.support.launch import ROOT
from tests.support.step_plans import make_plan
from tpu.precompile import pipeline
from tpu.precompile.hlo import HloProgram
from tpu.precompile.report import make_report, report_text
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


@pytest.mark.slow
@needs_tpu_compiler
def test_a_training_step_for_eight_cores(capsys):
    flags = ("--gin.BATCH_SIZE=64", f"--gin.NUM_MICROBATCHES={NUM_MICROBATCHES}")
    report = json.loads(run(capsys, *flags, "--json"))
    assert report["fits"] and report["num_devices"] == 8 and report["mesh"] == {"data": 8, "model": 1}

    rows = {(row["kind"], row["dimension"]): row for row in report["collectives"]}
    # Dispatch and combine in both passes, in each microbatch; experts' weights are never gathered.
    assert rows["all-to-all", "data"]["number"] == 4 * NUM_SPARSE_LAYERS * NUM_MICROBATCHES
    assert {kind for kind, _ in rows} == {"all-to-all", "all-reduce"}

    memory = report["bytes_per_device"]
    # The state is donated.
    assert memory["aliased"] >= memory["weights"] + memory["slots"] > 0
    assert memory["weights"] + memory["slots"] < memory["needed"] < memory["limit"]

    flops = report["flops_per_device"]
    assert flops["model"] <= flops["all_slots"]
    assert 0.95 < flops["compiled"] / flops["all_slots"] < 1.15
    seconds = report["min_seconds"]
    # At full effort, all-to-alls run beside other instructions.
    assert rows["all-to-all", "data"]["asynchronous"] > 0 == rows["all-reduce", "data"]["asynchronous"]
    assert 0 < seconds["exposed"] < seconds["collectives"]
    assert seconds["step"] == seconds["matmuls"] + seconds["exposed"]
    assert report["max_tokens_per_second"] == pytest.approx(64 * (512 + 114) / seconds["step"])


@needs_tpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize("effort", ["low", "full"])
def test_no_weight_is_kept_in_bfloat16_across_microbatches(capsys, tmp_path, effort):
    """XLA moves what does not change out of a loop: it would keep a copy of all weights, half of their size."""
    hlo = tmp_path / "step.hlo"
    run(capsys, "--gin.BATCH_SIZE=64", "--gin.NUM_MICROBATCHES=2", f"--hlo={hlo}", f"--effort={effort}", "--json")
    program = HloProgram(hlo.read_text())
    (loop,) = (each for name in program.executions for each in program.computations[name] if each.kind == "while")
    carried = {of: {sizes for dtype, sizes in loop.shapes if dtype == of and len(sizes) > 1} for of in ("f32", "bf16")}
    # Weights and accumulated gradients; in bfloat16 at most a constant of positions.
    assert len(carried["f32"]) > 5 and not carried["f32"] & carried["bf16"]


@needs_tpu_compiler
@pytest.mark.slow
def test_more_microbatches_do_not_enlarge_the_program(capsys):
    sizes = []
    for batch_size in (64, 256):
        flags = (f"--gin.BATCH_SIZE={batch_size}", f"--gin.NUM_MICROBATCHES={batch_size // 32}", "--json")
        report = json.loads(run(capsys, *flags))
        sizes.append(report["bytes_per_device"]["program"])
    assert sizes[1] <= 1.02 * sizes[0]


@needs_tpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize("step", ["evaluate", "decode"])
def test_other_steps(capsys, step):
    report = json.loads(run(capsys, "--gin.BATCH_SIZE=64", f"--step={step}", "--json"))
    assert report["fits"] and report["bytes_per_device"]["slots"] == 0
    (all_to_alls,) = (row["number"] for row in report["collectives"] if row["kind"] == "all-to-all")
    # Decoding runs the decoder's sparse layer for each of 114 tokens.
    assert all_to_alls == 2 * {"evaluate": NUM_SPARSE_LAYERS, "decode": 1 + 114}[step]
    flops = report["flops_per_device"]
    assert 0.9 < flops["compiled"] / flops["all_slots"] < 1.15


@pytest.fixture
def teacher(tmp_path) -> str:
    """The model directory of a sparse teacher; a plan reads no weights."""
    gin_config.load(["gin/models/switch_tiny_8.gin"], [])
    checkpoints = checkpoints_of(str(tmp_path))
    checkpoints.prepare(5)
    checkpoints.complete(5, Manifest(5, model=dataclasses.asdict(ModelConfig())))
    return str(tmp_path)


def distilled(teacher: str, *flags: str) -> list[str]:
    return [
        "--gin_file=gin/runs/distill.gin",
        "--gin.NUM_EXPERTS=0",
        f"--gin.TEACHER='{teacher}'",
        "--gin.BATCH_SIZE=64",
        "--gin.NUM_MICROBATCHES=1",
        *flags,
    ]


@needs_tpu_compiler
@pytest.mark.slow
def test_a_teacher_is_in_memory_beside_the_student(capsys, teacher):
    found = {}
    for dtype in ("float32", "bfloat16"):
        flags = distilled(teacher, f"--gin.TEACHER_DTYPE='{dtype}'", "--gin.TEACHER_CAPACITY_FACTOR=2.0", "--json")
        report = json.loads(run(capsys, *flags))
        found[dtype] = report["bytes_per_device"]
        assert report["fits"] and found[dtype]["padding"] >= 0
        flops = report["flops_per_device"]
        assert 0.95 < flops["compiled"] / flops["all_slots"] < 1.15
    # Eight experts over eight cores: one each, and everything else whole.
    gin_config.load(["gin/models/switch_tiny_8.gin"], ["NUM_EXPERTS = 1"])
    expected = description(ModelConfig(), 512, 114)["weight_bytes"]
    router = 4 * 2 * 128 * (8 - 1)
    assert found["float32"]["teacher"] == 2 * found["bfloat16"]["teacher"] == expected + router
    assert found["bfloat16"]["needed"] < found["float32"]["needed"]


def test_a_teacher_that_the_mesh_cannot_hold(capsys, monkeypatch, teacher):
    monkeypatch.setattr(pipeline, "_COMPILERS", {})
    sentence = refusal(capsys, *distilled(teacher, "--topology=v3-32", "--gin.MESH_SHAPE='data:32,model:1'"))
    assert sentence.startswith(f"TEACHER = '{teacher}' does not fit beside the student: MESH_SHAPE = 'data:32,model:1'")


@needs_tpu_compiler
def test_a_step_that_does_not_fit_is_reported_with_advice(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["tpu", "precompile", *TINY, "--gin.BATCH_SIZE=65536", "--gin.NUM_MICROBATCHES=1"])
    assert stopped.value.code == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("train step of 65536 sequences of 512 + 114 tokens, on v3:2x2 (v3-8; data 8 x model 1)")
    assert second.startswith("does not fit: needs ") and " of 15.48 GiB per device; " in second
    assert second.endswith("raise NUM_MICROBATCHES to 8")


@needs_tpu_compiler
def test_a_topology_for_which_the_compiler_aborts(capsys):
    line = refusal(
        capsys,
        *("--topology=v5e:16x32", "--gin.BATCH_SIZE=512", "--gin.NUM_MICROBATCHES=1", "--gin.NUM_EXPERTS=512"),
        "--gin.MESH_SHAPE='data:512,model:1'",
    )
    assert line.startswith("--topology=v5e:16x32 is not a slice that the TPU compiler knows (available: v5e:1x1, ")


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        (["--gin.BATCH_SIZE=0"], "BATCH_SIZE = 0 must be at least 1."),
        (["--gin.TASK_FEATURE_LENGTHS={'inputs': 8}"], "TASK_FEATURE_LENGTHS = {'inputs': 8} has no 'targets'."),
        (["--gin.Experiment.batch_size=33"], "NUM_MICROBATCHES = 16 must divide BATCH_SIZE = 33"),
        (["--hlo=/no/such/folder/step.hlo"], "--hlo=/no/such/folder/step.hlo: its folder does not exist"),
        (["--topology=v9-8"], "accelerator_type = 'v9-8' is not a TPU slice"),
        (["--topology=v9:2x2"], "topology = 'v9:2x2': there is no TPU generation 'v9'"),
        (
            ["--topology=v4-32"],
            "MESH_SHAPE = 'data:8,model:1' has 8 devices, but --topology=v4:2x2x4 has 16: make them equal",
        ),
        (["--gin.NUM_EXPERTS=12"], "MESH_SHAPE = 'data:8,model:1' shards experts over 8 devices, but NUM_EXPERTS = 12"),
        (["--gin.NUM_MICROBATCHES=3"], "NUM_MICROBATCHES = 3 must divide BATCH_SIZE = 2048"),
        (["--layout=gin/layouts/v3_9.gin"], "--gin_file=gin/layouts/v3_9.gin is not there"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_compiled(capsys, monkeypatch, flags, start):
    monkeypatch.setattr(pipeline, "_COMPILERS", {})
    monkeypatch.setattr(pipeline, "_run", lambda *_: pytest.fail("A process was started."))
    assert refusal(capsys, *flags).startswith(start)


def test_a_run_is_needed_for_its_optimizer(capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "_COMPILERS", {})
    with pytest.raises(SystemExit):
        main(["tpu", "precompile", TINY[0], "--topology=v5e:1x1"])
    assert (
        "Nothing binds Experiment.task_feature_lengths: add --gin_file=gin/runs/pretrain.gin" in capsys.readouterr().err
    )


def test_a_missing_extra(capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "_COMPILERS", {"no-such-compiler": "1.0"})
    assert refusal(capsys) == (
        "precompile needs no-such-compiler 1.0, but it is not installed: pip install 'switch-tf[aot]'."
    )


def test_a_compiler_that_the_system_kills(tmp_path):
    with pytest.raises(SettingError, match="most likely because it ran out of memory: try --effort=low"):
        pipeline._run("tests.programs.killed_by_the_system", tmp_path, "compiling")


def test_running_out_of_memory_does_not_make_a_topology_invalid(tmp_path, monkeypatch):
    run = pipeline._run
    monkeypatch.setattr(pipeline, "_run", lambda _, *more: run("tests.programs.killed_by_the_system", *more))
    with pytest.raises(SettingError, match=r"^checking v4:2x2x2 was killed by the system"):
        pipeline._check_topology(find_slice("v4:2x2x2"), tmp_path)


def test_a_signal_kills_the_compiler(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    children = []
    monkeypatch.setattr(pipeline, "_wait", lambda child, clock: children.append(child) or os.kill(os.getpid(), 15))
    with pytest.raises(SystemExit) as stopped, pipeline._exit_on_signals():
        pipeline._run("http.server", tmp_path, "compiling")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    children[0].kill()


def test_the_compilers_are_those_of_the_extra():
    extra = re.search(r'"aot": \[(.*?)\]', (ROOT / "setup.py").read_text())[1]
    for package, version in pipeline._COMPILERS.items():
        assert f'"{package}=={version}"' in extra


def test_a_compiler_that_crashes(tmp_path):
    with pytest.raises(SettingError, match=r"is a bug in switch_tf or in its compilers: .*No module named"):
        pipeline._run("tests.tpu.no_such_module", tmp_path, "compiling")


def test_a_rejection_for_another_reason_than_memory_is_not_taken_for_one():
    compiled = {"error": "INTERNAL: a bug", "seconds": 1.0, "host_bytes": 1}
    lowering = {"seconds": 1.0, "host_bytes": 1}
    with pytest.raises(SettingError, match="rejected the step, but not for its memory: INTERNAL: a bug"):
        make_report(make_plan(), find_slice("v4:2x2x2"), "full", lowering, compiled)


@pytest.mark.parametrize(("step", "recomputed"), [("train", "blocks"), ("evaluate", "none")])
def test_a_report_says_what_is_recomputed_in_the_backward_pass(step, recomputed):
    compiled = {"error": "RESOURCE_EXHAUSTED: Used 41.3G of 30.75G hbm", "seconds": 1.0, "host_bytes": 1}
    plan = make_plan(step=step, rematerialization="blocks")
    report = make_report(plan, find_slice("v4:2x2x2"), "full", {"seconds": 1.0, "host_bytes": 1}, compiled)
    assert report["rematerialization"] == recomputed
    title = report_text(report).splitlines()[0]
    assert ("tokens, blocks recomputed in the backward pass, on v4:2x2x2" in title) == (step == "train")
