"""`switch-tf tpu precompile`: a step of an experiment through the compiler of TPUs that are not there."""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from switch_tf.cli import flags
from switch_tf.errors import SettingError
from tpu.precompile.handoff import COMPILED, LOWERING, REQUEST, TARGET, TEXT
from tpu.topologies import Slice, find_slice

_EXAMPLES = """\
examples:
  switch-tf tpu precompile --gin_file=gin/models/switch_base_128.gin --gin_file=gin/runs/pretrain.gin \\
      --gin_file=gin/precision/selective.gin --layout=gin/layouts/v3_32.gin --topology=v3-32
  switch-tf tpu precompile ... --topology=v4:4x4x8 --gin.MESH_SHAPE='"data:16,model:8"' --json
  switch-tf tpu precompile ... --topology=v5e:4x8 --step=decode --gin.BATCH_SIZE=256

The status is 0 where the step fits into the devices' memory, 1 where it does not. docs/tpu.md reads the report.
"""
# tpu/precompile/lowering.py and tpu/precompile/compiling.py go private ways into them; setup.py's [aot] pins them.
_COMPILERS = {"jax": "0.10.2", "libtpu": "0.0.42.1"}
# No TPU is looked for, no machine is asked whether it is in a cloud, and nothing is written beside the results.
_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    # Several of them may compile at a time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_POLL_SECONDS = 0.5


def add_parser(commands) -> None:
    """Adds `precompile` under `switch-tf tpu`.

    Args:
      commands: what `add_subparsers` returned.
    """
    parser = flags.add_with_examples(
        commands, "precompile", "compile for a TPU that is not there: does it fit, what does it exchange", _EXAMPLES
    )
    flags.add_gin(parser)
    flags.add_json(parser)
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="as Cloud TPU calls it (v4-256), or the compiler (v4:4x4x8)"
    )
    parser.add_argument("--layout", metavar="FILE", help="a gin file of the mesh, read after every --gin_file")
    parser.add_argument(
        "--step",
        choices=("train", "evaluate", "decode"),
        default="train",
        help="which step (default: %(default)s); `decode` takes a batch from the encoder to the last token",
    )
    parser.add_argument(
        "--effort",
        choices=("full", "low"),
        default="full",
        help="low: sooner and with half of the memory, for a program that is smaller and slower, with about the same "
        "activations and exchanges (default: %(default)s)",
    )
    parser.add_argument("--hlo", metavar="FILE", help="write one device's program there, as HLO text")


def precompile(options: argparse.Namespace, bindings: list[str]) -> None:
    """Compiles and prints the report; leaves with status 1 where the step does not fit.

    Args:
      options: of the command line.
      bindings: `NAME = value` lines of --gin.NAME=value.

    Raises:
      SettingError: if the experiment, the mesh or the topology is wrong, or the compiler is absent or gave up.
    """
    # TensorFlow's import takes seconds, which `--help` should not.
    from tpu.precompile.plan import read_plan
    from tpu.precompile.report import report_of, report_text

    _check_compilers()
    slice_ = find_slice(options.topology)
    request = {
        "gin_files": [*options.gin_file, *([options.layout] if options.layout else [])],
        "bindings": bindings,
        "search_path": options.gin_search_path,
        "step": options.step,
    }
    plan = read_plan(**request)
    _check_mesh(plan.layout.mesh, slice_)
    if options.hlo and not pathlib.Path(options.hlo).absolute().parent.is_dir():
        raise SettingError(f"--hlo={options.hlo}: there is no such folder; make it first.")
    with tempfile.TemporaryDirectory(prefix="precompile") as name, _ended_by_signals():
        folder = pathlib.Path(name)
        (folder / REQUEST).write_text(json.dumps(request))
        target = {
            "topology_name": slice_.topology_name,
            "topology_settings": _topology_settings(slice_),
            "with_low_effort": options.effort == "low",
        }
        (folder / TARGET).write_text(json.dumps(target))
        if slice_.shape not in slice_.generation.shapes:
            _look_up(slice_, folder)
        _run("tpu.precompile.lowering", folder, "lowering")
        _run("tpu.precompile.compiling", folder, f"compiling for {slice_.topology_name}")
        text = (folder / TEXT).read_text() if (folder / TEXT).exists() else None
        if options.hlo and text:
            pathlib.Path(options.hlo).write_text(text)
        report = report_of(
            plan,
            slice_,
            options.effort,
            lowering=json.loads((folder / LOWERING).read_text()),
            compiled=json.loads((folder / COMPILED).read_text()),
            text=text,
        )
    print(json.dumps(report, indent=2) if options.json else report_text(report))
    if not report["fits"]:
        sys.exit(1)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Leaves the block, which ends the compiler and removes its files, when the process is told to stop."""

    def leave(number: int, frame) -> None:
        del frame
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_compilers() -> None:
    for package, version in _COMPILERS.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "absent"
        if found != version:
            raise SettingError(
                f"precompile needs {package} {version}, which is {found} here: pip install 'switch-tf[aot]'."
            )


def _check_mesh(mesh: Mapping[str, int], slice_: Slice) -> None:
    num_devices = math.prod(mesh.values())
    if num_devices != slice_.num_devices:
        shape = ",".join(f"{name}:{size}" for name, size in mesh.items())
        others = [slice_.generation.slice(shape) for shape in slice_.generation.shapes]
        names = [other.accelerator_type for other in others if other.num_devices == num_devices]
        raise SettingError(
            f"MESH_SHAPE = '{shape}' has {num_devices} devices and --topology={slice_.topology_name} "
            f"{slice_.num_devices}: make them equal" + (f", or take --topology={names[0]}." if names else ".")
        )


def _topology_settings(slice_: Slice) -> dict:
    if slice_.num_chips == 1:
        return {"chips_per_host_bounds": [1, 1, 1]}
    # Both cores of a chip as one device, as Cloud TPU has it.
    return {"chip_config_name": "megacore"} if slice_.generation.name == "v4" else {}


class _CompilerDefect(SettingError):
    """A compiler ended by itself, without a result."""


def _look_up(slice_: Slice, folder: pathlib.Path) -> None:
    """Asks the compiler for a slice of an unusual shape, which may end it, before anything takes minutes."""
    try:
        _run("tpu.precompile.compiling", folder, f"looking {slice_.topology_name} up")
    except _CompilerDefect as error:
        usual = ", ".join(slice_.generation.slice(shape).topology_name for shape in slice_.generation.shapes)
        raise SettingError(
            f"--topology={slice_.topology_name} is no slice that the TPU's compiler knows (there is: {usual})."
        ) from error


def _run(module: str, folder: pathlib.Path, what: str) -> None:
    """Runs `python -m module folder`, and says how long it has been at it.

    Raises:
      SettingError: if it ends without a result; a `_CompilerDefect`, unless the system ended it.
    """
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    errors = folder / "errors.txt"
    with errors.open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=os.environ | _QUIET | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        with tqdm(desc=what, bar_format="{desc} {elapsed}", disable=None) as clock:
            _wait(child, clock)
    if child.returncode == -signal.SIGKILL:
        raise SettingError(
            f"{what} was ended by the system, most likely for want of memory: try --effort=low, have fewer sequences "
            "on a device at a time (NUM_MICROBATCHES, BATCH_SIZE), or take a machine with more memory."
        )
    if child.returncode:
        lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"status {child.returncode}"
        raise _CompilerDefect(f"{what} failed, which is a defect of switch_tf or of its compilers: {reason}")


def _wait(child: subprocess.Popen, clock: tqdm) -> None:
    try:
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_SECONDS)
            clock.refresh()
    finally:
        child.kill()
        child.wait()
