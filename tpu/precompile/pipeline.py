"""Ahead-of-time compilation from gin files to a report: plan, lower, compile, analyze."""

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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from switch_tf import compat
from switch_tf.errors import SettingError
from tpu.precompile.handoff import COMPILED, LOWERING, REQUEST, TARGET, TEXT
from tpu.topologies import Slice, find_slice

# The [aot] extra pins them: switch_tf/compat.py calls private APIs of this JAX, which needs a libtpu of its own age.
_COMPILERS = {"jax": compat.JAX_VERSION, "libtpu": "0.0.42.1"}
# Settings of the child processes: no search for TPUs, no query to a metadata server, no log files.
_CHILD_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    # Several processes may compile at the same time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_POLL_SECONDS = 0.5


def precompile(
    gin_files: Sequence[str],
    bindings: Sequence[str],
    search_path: Sequence[str],
    step: str,
    topology: str,
    effort: str = "full",
    hlo_file: str | None = None,
) -> dict[str, Any]:
    """Compiles one step of an experiment for a TPU slice.

    Args:
      gin_files: of a model, a run and a layout.
      bindings: `NAME = value` lines that override the files.
      search_path: folders to look for gin files in first.
      step: "train", "evaluate" or "decode".
      topology: a slice by Cloud TPU's name ("v4-128") or by the compiler's ("v4:4x4x4").
      effort: "full" or "low".
      hlo_file: where to write the optimized program of one device; None for nowhere.

    Returns:
      The report: an object for JSON, which docs/tpu.md explains.

    Raises:
      SettingError: if the experiment, the mesh or the topology is wrong, or the compiler is not installed or failed.
    """
    # Importing TensorFlow takes seconds, and a missing compiler should be reported at once.
    _check_compilers()
    from tpu.precompile.plan import read_plan
    from tpu.precompile.report import make_report

    slice_ = find_slice(topology)
    request = {"gin_files": [*gin_files], "bindings": [*bindings], "search_path": [*search_path], "step": step}
    plan = read_plan(gin_files, bindings, search_path, step)
    _check_mesh(plan.layout.mesh, slice_)
    if hlo_file and not pathlib.Path(hlo_file).absolute().parent.is_dir():
        raise SettingError(f"--hlo={hlo_file}: its folder does not exist; create it first.")
    with tempfile.TemporaryDirectory(prefix="precompile") as name, _exit_on_signals():
        folder = pathlib.Path(name)
        (folder / REQUEST).write_text(json.dumps(request))
        target = {
            "topology_name": slice_.topology_name,
            "topology_settings": _topology_settings(slice_),
            "with_low_effort": effort == "low",
        }
        (folder / TARGET).write_text(json.dumps(target))
        if slice_.shape not in slice_.generation.shapes:
            _check_topology(slice_, folder)
        _run("tpu.precompile.lowering", folder, "lowering")
        options = slice_.generation.compiler_options
        _run("tpu.precompile.compiling", folder, f"compiling for {slice_.topology_name}", options)
        text = (folder / TEXT).read_text() if (folder / TEXT).exists() else None
        if hlo_file and text:
            pathlib.Path(hlo_file).write_text(text)
        return make_report(
            plan,
            slice_,
            effort,
            lowering=json.loads((folder / LOWERING).read_text()),
            compiled=json.loads((folder / COMPILED).read_text()),
            hlo_text=text,
        )


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGINT into SystemExit, so that the child process is killed and its files are removed."""

    def leave(number: int, frame: object) -> None:
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
            found = None
        if found != version:
            state = f"version {found} is installed" if found else "it is not installed"
            raise SettingError(f"precompile needs {package} {version}, but {state}: pip install 'switch-tf[aot]'.")


def _check_mesh(mesh: Mapping[str, int], slice_: Slice) -> None:
    num_devices = math.prod(mesh.values())
    if num_devices != slice_.num_devices:
        mesh_shape = ",".join(f"{name}:{size}" for name, size in mesh.items())
        fitting = slice_.generation.accelerator_types(num_devices)
        raise SettingError(
            f"MESH_SHAPE = '{mesh_shape}' has {num_devices} devices, but --topology={slice_.topology_name} has "
            f"{slice_.num_devices}: make them equal" + (f", or use --topology={fitting[0]}." if fitting else ".")
        )


def _topology_settings(slice_: Slice) -> dict[str, object]:
    if slice_.num_chips == 1:
        return {"chips_per_host_bounds": [1, 1, 1]}
    # Cloud TPU runs both cores of a v4 chip as one device.
    return {"chip_config_name": "megacore"} if slice_.generation.name == "v4" else {}


class _ChildFailed(SettingError):
    """A child process failed by itself: it was not killed by the system."""


def _check_topology(slice_: Slice, folder: pathlib.Path) -> None:
    """Asks the compiler, in seconds, whether a slice of an unusual shape exists: it aborts for one that does not."""
    try:
        _run("tpu.precompile.compiling", folder, f"checking {slice_.topology_name}")
    except _ChildFailed as error:
        usual = ", ".join(slice_.generation.slice(shape).topology_name for shape in slice_.generation.shapes)
        raise SettingError(
            f"--topology={slice_.topology_name} is not a slice that the TPU compiler knows (available: {usual})."
        ) from error


def _run(module: str, folder: pathlib.Path, what: str, compiler_options: str = "") -> None:
    """Runs `python -m module folder` with a clock on standard error.

    Args:
      module: the module's name.
      folder: its argument.
      what: what it does, for the clock and for errors.
      compiler_options: for libtpu, unless `LIBTPU_INIT_ARGS` is set.

    Raises:
      SettingError: if it fails; a `_ChildFailed` unless the system killed it.
    """
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    errors = folder / "errors.txt"
    with errors.open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={"LIBTPU_INIT_ARGS": compiler_options, **os.environ, **_CHILD_ENVIRONMENT, **paths},
        )
        with tqdm(desc=what, bar_format="{desc} {elapsed}", disable=None) as clock:
            _wait(child, clock)
    if child.returncode == -signal.SIGKILL:
        raise SettingError(
            f"{what} was killed by the system, most likely because it ran out of memory: try --effort=low, process "
            "fewer sequences per device at a time (NUM_MICROBATCHES, BATCH_SIZE), or use a machine with more memory."
        )
    if child.returncode:
        lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit status {child.returncode}"
        raise _ChildFailed(f"{what} failed, which is a bug in switch_tf or in its compilers: {reason}")


def _wait(child: subprocess.Popen, clock: tqdm) -> None:
    try:
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_SECONDS)
            clock.refresh()
    finally:
        child.kill()
        child.wait()
