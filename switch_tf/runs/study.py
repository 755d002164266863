"""Studies: many runs of one experiment that differ in a few gin bindings and in the seed; `switch-tf study`."""

import contextlib
import dataclasses
import fcntl
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import gin
import tqdm

import switch_tf.runs.loop  # noqa: F401 (registers what the experiments' gin files bind)
from switch_tf import storage
from switch_tf.data.task_lookup import find_task
from switch_tf.errors import SettingError, nearest
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.recorder import read_csv

_POLL_SECONDS = 1.0
_LAST_LINES = 3
# A run that has one core has one thread: threads that wait for the same core cost more than they compute.
_ONE_THREAD = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), "1")


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One run of a study: an ordinary model directory.

    Attributes:
      variant: the name of its bindings.
      seed: of weights, data and noise.
      model_dir: where it is trained.
      gin_files: of the experiment.
      bindings: `NAME = value` lines.
      steps: how many updates it makes.
      tokens_per_step: of inputs and targets together, padding included.
      needs: the model directories of runs that this one starts from, which come first.
      score: what is compared, "task/metric" of task_eval.csv; None: held-out negative log perplexity.
    """

    variant: str
    seed: int
    model_dir: str
    gin_files: tuple[str, ...]
    bindings: tuple[str, ...]
    steps: int
    tokens_per_step: int
    needs: tuple[str, ...] = ()
    score: str | None = None

    def curve(self) -> list[tuple[int, float]]:
        """Returns what is compared so far: (step, value) of each evaluation."""
        if self.score is None:
            return [(int(row["step"]), float(row["neg_log_perplexity"])) for row in self.evaluations()]
        rows = read_csv(os.path.join(self.model_dir, "task_eval.csv"))
        scores = [row for row in rows if f"{row['task']}/{row['metric']}" == self.score]
        return [(int(row["step"]), float(row["value"])) for row in scores]

    def evaluations(self) -> list[dict[str, str]]:
        """Returns the rows of the run's eval.csv so far."""
        return read_csv(os.path.join(self.model_dir, "eval.csv"))

    def is_done(self) -> bool:
        """Whether the run has made all of its steps and evaluated the last one."""
        rows = self.evaluations()
        return bool(rows) and int(rows[-1]["step"]) >= self.steps

    def steps_made(self) -> int:
        """Returns how many steps the run has logged."""
        rows = read_csv(os.path.join(self.model_dir, "metrics.csv"))
        return int(rows[-1]["step"]) if rows else 0

    def arguments(self) -> list[str]:
        """Returns the arguments of `switch-tf` that train the run, or resume it."""
        flags = (binding.split(" = ", 1) for binding in self.bindings)
        return [
            "train",
            *(f"--gin_file={name}" for name in self.gin_files),
            *(f"--gin.{name}={value}" for name, value in flags),
        ]

    def command(self) -> str:
        """Returns the same as a line for a shell."""
        return shlex.join(["switch-tf", *self.arguments()])


def _literal(value: object) -> str:
    """Writes a value as gin reads it: a string that is a reference or a macro (`@Name()`, `%NAME`) stays as it is."""
    return value if isinstance(value, str) and value[:1] in ("@", "%") else repr(value)


def _bindings(*groups: Mapping[str, object]) -> tuple[str, ...]:
    merged = {name: value for group in groups for name, value in group.items()}
    return tuple(f"{name} = {_literal(value)}" for name, value in merged.items())


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Study:
    """What a study's gin file says.

    Attributes:
      folder: where the runs and the tables go.
      gin_files: of the experiment that all runs share.
      variants: the bindings of each variant, by its name: {"dense": {"NUM_EXPERTS": 0}, ...}.
      grid: values of further bindings, {"CAPACITY_FACTOR": [1.0, 2.0]}: each variant is run with each combination.
      seeds: each variant is run with each of them.
      bindings: of all runs.
      baseline: the variant that others are compared with; None: the first.
      more_gin_files: further gin files of a variant, read after `gin_files`: {"student": ["gin/runs/distill.gin"]}.
      starts_from: macros of a variant whose value is the model directory of another variant, of the same seed and
        trained before it: {"student": {"TEACHER": "sparse"}}.
      teacher: the variant whose gain over the baseline students are to keep, for `share_of_gain`; None for no teacher.
      score: what is compared, "task/metric", at its peak (Sec. 4.1); None: the last held-out negative log perplexity.
    """

    folder: str = gin.REQUIRED
    gin_files: Sequence[str] = gin.REQUIRED
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    baseline: str | None = None
    more_gin_files: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    starts_from: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    teacher: str | None = None
    score: str | None = None

    def __post_init__(self) -> None:
        if not self.variants and not self.grid:
            raise SettingError("A study needs Study.variants or Study.grid: which bindings its runs differ in.")
        if not self.seeds:
            raise SettingError("Study.seeds is empty: give it one seed at least.")
        for setting in ("baseline", "teacher"):
            self._check_variant(setting, getattr(self, setting))
        for setting in ("more_gin_files", "starts_from"):
            for name in getattr(self, setting):
                self._check_variant(setting, name)
        for name, macros in self.starts_from.items():
            for other in macros.values():
                self._check_variant("starts_from", other)
            self._check_order(name)

    def _check_variant(self, setting: str, name: str | None) -> None:
        names = list(self.named_bindings())
        if name is not None and name not in names:
            raise SettingError(
                f"Study.{setting} = {name!r} is no variant{nearest(name, names)}; the variants are {', '.join(names)}."
            )

    def _check_order(self, name: str, before: tuple[str, ...] = ()) -> None:
        if name in before:
            raise SettingError(f"Study.starts_from is a circle: {' <- '.join((*before, name))}; one has to be first.")
        for other in self.starts_from.get(name, {}).values():
            self._check_order(other, (*before, name))

    @property
    def baseline_name(self) -> str:
        """The variant that others are compared with."""
        return self.baseline or next(iter(self.named_bindings()))

    def named_bindings(self) -> dict[str, dict[str, Any]]:
        """Returns the bindings of every variant by its name, combinations of the grid included, in order."""
        named = {}
        for variant, bindings in (self.variants or {"": {}}).items():
            for values in itertools.product(*self.grid.values()):
                chosen = dict(zip(self.grid, values))
                parts = [variant, *(f"{name}={value}" for name, value in chosen.items())]
                named[", ".join(filter(None, parts))] = {**bindings, **chosen}
        return named

    def runs(self) -> list[StudyRun]:
        """Returns all runs, all variants with the first seed first, and checks the settings of every one.

        Raises:
          SettingError: if a variant's bindings are wrong; the sentence names the variant.
        """
        return [
            self._run(variant, bindings, seed)
            for seed in self.seeds
            for variant, bindings in self.named_bindings().items()
        ]

    def _model_dir(self, variant: str, seed: int) -> str:
        slug = re.sub(r"[^A-Za-z0-9.=-]+", "_", variant).strip("_")
        return os.path.join(self.folder, f"{slug}-seed{seed}")

    def _run(self, variant: str, bindings: Mapping[str, Any], seed: int) -> StudyRun:
        model_dir = self._model_dir(variant, seed)
        starts = {name: self._model_dir(other, seed) for name, other in self.starts_from.get(variant, {}).items()}
        lines = _bindings(self.bindings, bindings, starts, {"SEED": seed, "MODEL_DIR": model_dir})
        gin_files = (*self.gin_files, *self.more_gin_files.get(variant, ()))
        try:
            gin_config.load(gin_files, lines)
            gin_config.check_required()
            experiment: Experiment = gin_config.parameter("train.experiment", gin_file="gin/runs/pretrain.gin")
            find_task(experiment.mixture_or_task)
        except SettingError as error:
            raise SettingError(f"Study variant '{variant}': {error}") from error
        tokens = experiment.batch_size * sum(experiment.task_feature_lengths.values())
        steps = gin_config.parameter("train.steps")
        return StudyRun(variant, seed, model_dir, gin_files, lines, steps, tokens, tuple(starts.values()), self.score)


class _Process:
    """A run that is being trained by a process of its own, on a core of its own if there are several."""

    def __init__(self, run: StudyRun, core: int | None):
        """Starts the process.

        Args:
          run: which.
          core: that it is pinned to; None: it may use all of them.

        Raises:
          SettingError: if another process trains the run at present.
        """
        self.run = run
        self.core = core
        storage.make_folder(run.model_dir)
        self._lock = _locked(run.model_dir)
        self.log_path = os.path.join(run.model_dir, "log.txt")
        with open(self.log_path, "a", encoding="utf-8", opener=storage.without_link) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "switch_tf.cli.main", *run.arguments()],
                env=os.environ | (_ONE_THREAD if core is not None else {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Inherited, so that the lock lasts as long as the run, whatever happens to this process.
                pass_fds=[self._lock.fileno()],
            )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})

    def has_ended(self) -> bool:
        """Whether the process has ended.

        Raises:
          SettingError: if it failed.
        """
        status = self._process.poll()
        if status is None:
            return False
        self._lock.close()
        if status:
            raise SettingError(
                f"{self.run.model_dir} failed with status {status}: {self._last_words()} (all of it in {self.log_path})"
            )
        return True

    def _last_words(self) -> str:
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            lines = [line.strip() for line in log.read().splitlines() if line.strip()]
        return " | ".join(lines[-_LAST_LINES:])

    def stop(self) -> None:
        """Asks the process to save a checkpoint and end, and waits for it."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._lock.close()


def _locked(model_dir: str) -> IO[str]:
    """Opens and locks a run's lock file.

    Raises:
      SettingError: if another process holds the lock.
    """
    path = os.path.join(model_dir, "study.lock")
    lock = open(path, "w", encoding="utf-8", opener=storage.without_link)  # noqa: SIM115 (the process holds it)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise SettingError(
            f"{model_dir} is being trained by another process: wait until it ends, or end it."
        ) from error
    return lock


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that the runs are told to stop."""

    def stop(number: int, frame: object) -> None:
        del frame
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ready_runs(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Returns the runs that are not done and can be trained: what they start from is done."""
    done = {run.model_dir for run in runs if run.is_done()}
    return [run for run in runs if run.model_dir not in done and done.issuperset(run.needs)]


def train_runs(runs: Sequence[StudyRun], jobs: int = 1) -> None:
    """Trains all runs that are not done, `jobs` at a time and in an order that they allow, and shows how far they are.

    Args:
      runs: of a study; those that began resume.
      jobs: how many at a time; each is pinned to a core of its own where there are several.

    Raises:
      SettingError: if there are more jobs than cores, or a run fails: the others stop with a checkpoint.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise SettingError(f"--jobs={jobs} must be between 1 and the number of cores, {len(cores)}.")
    pending = [run for run in runs if not run.is_done()]
    free: list[int | None] = [*cores[:jobs]] if jobs > 1 else [None]
    active: list[_Process] = []
    done = {run.model_dir for run in runs if run not in pending}
    ended = sum(run.steps for run in runs if run not in pending)
    total = sum(run.steps for run in runs)
    with _sigterm_raises(), tqdm.tqdm(total=total, initial=ended, unit="step", desc="study") as bar:
        try:
            while pending or active:
                ready = [run for run in pending if done.issuperset(run.needs)]
                for run in ready[: len(free)]:
                    pending.remove(run)
                    active.append(_Process(run, free.pop(0)))
                for process in active.copy():
                    if process.has_ended():
                        active.remove(process)
                        done.add(process.run.model_dir)
                        free.append(process.core)
                        ended += process.run.steps
                bar.update(ended + sum(process.run.steps_made() for process in active) - bar.n)
                bar.set_postfix(runs=f"{len(runs) - len(pending) - len(active)}/{len(runs)}", refresh=False)
                time.sleep(_POLL_SECONDS)
        finally:
            for process in active:
                process.stop()
