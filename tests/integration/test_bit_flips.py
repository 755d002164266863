"""One bit flipped anywhere in a run's newest checkpoint: the run resumes with weights that were saved, bit for bit."""

import collections
import pathlib
import random
import shutil
from collections.abc import Iterator

import pytest

from switch_tf.data.training_batches import TrainingBatches
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.resuming import restore_newest
from switch_tf.runs.run import Run
from switch_tf.runs.verification import verify
from switch_tf.training.adafactor import Adafactor

NEWEST, BEFORE = 12, 8
TRIALS = {"state.data-00000-of-00001": 300, "state.index": 100, "manifest.json": 100}


@pytest.fixture
def model_dir(tiny_run, tmp_path) -> pathlib.Path:
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def run(model_dir) -> tuple[Run, TrainingBatches]:
    """What `train` has opened when it looks for a checkpoint."""
    gin_config.load(["tests/support/tiny.gin"], [f"MODEL_DIR = '{model_dir}'"])
    experiment = Experiment()
    experiment.install_vocabulary()
    engine = experiment.make_engine()
    return Run(experiment, Adafactor(), engine=engine), experiment.training_batches(engine)


def state(run: Run, batches: TrainingBatches) -> dict[str, bytes]:
    """Weights, slots, step and the next two batches."""
    values = {name: variable.numpy().tobytes() for name, variable in run.variables().items()}
    for number in range(2):
        values |= {f"batch {number}, {name}": rows.tobytes() for name, rows in next(batches).items()}
    return values


def overwrite(run: Run) -> None:
    """Leaves nothing of an earlier checkpoint, so that what is not restored is seen."""
    for variable in run.variables().values():
        variable.assign(variable - variable - 1)


def flips(size: int, count: int, generator: random.Random) -> Iterator[tuple[int, int]]:
    """Yields a byte and a bit of it in each of `count` regions of a file."""
    for region in range(count):
        first = region * size // count
        yield generator.randrange(first, max((region + 1) * size // count, first + 1)), generator.randrange(8)


def is_called_damaged(model_dir: pathlib.Path, step: int) -> bool:
    """What `switch-tf check` says of a checkpoint."""
    (finding,) = [each for each in verify(str(model_dir)) if each.name == f"checkpoints/step_{step:08d}"]
    return finding.fault is not None


@pytest.mark.slow
def test_five_hundred_flips(model_dir, run, capsys):
    """Whatever the bit, `train` and `check` agree on the damage, and what is restored is what was saved."""
    saved = {}
    for step in (BEFORE, NEWEST):
        run[0].restore(step, run[1])
        saved[step] = state(*run)
    same = [name for name in saved[NEWEST] if saved[NEWEST][name] == saved[BEFORE][name]]
    assert all(name.startswith("batch") for name in same) and "batch 0, encoder_input_tokens" not in same
    newest = model_dir / "checkpoints" / f"step_{NEWEST:08d}"
    assert {path.name for path in newest.iterdir()} == TRIALS.keys()
    generator = random.Random(0)
    found = collections.Counter()
    for name, trials in TRIALS.items():
        content = (newest / name).read_bytes()
        for byte, bit in flips(len(content), trials, generator):
            flipped = bytearray(content)
            flipped[byte] ^= 1 << bit
            (newest / name).write_bytes(flipped)
            called_damaged = is_called_damaged(model_dir, NEWEST)
            overwrite(run[0])
            step = restore_newest(*run)
            assert state(*run) == saved[step], (name, byte, bit)
            assert (step == BEFORE) == called_damaged, (name, byte, bit)
            if step == BEFORE:
                aside = newest.with_name(f"{newest.name}.damaged")
                assert (aside / name).read_bytes() == flipped and not newest.exists()
                aside.rename(newest)
                found[name] += 1
            (newest / name).write_bytes(content)
    with capsys.disabled():
        print(f"\n{sum(TRIALS.values())} flips in {TRIALS}, found: {dict(found)}")
    # Every byte of tensors has a checksum; a few bytes of the others say nothing.
    assert found["state.data-00000-of-00001"] == 300 and found["state.index"] > 70 and found["manifest.json"] > 70
