"""A run whose weights one batch damages goes back, and comes to the same weights when it is killed on the way."""

import pathlib
import shutil

import gin
import pytest
import tensorflow as tf

from switch_tf.runs import loop
from switch_tf.runs.hooks import Hook
from switch_tf.runs.recorder import read_csv
from tests.support import commands, launch

BAD_BATCH = 6
SETTINGS = (
    *("TRAIN_STEPS=10", "CHECKPOINT_PERIOD=4", "LOG_PERIOD=1", "SPIKE_FACTOR=2.0", "GoBackOnSpikes.window=3"),
    *("train.hooks=[@RecordMetrics(), @GoBackOnSpikes(), @SaveCheckpoints()]", "NUM_EXPERTS=0"),
    *("ModelConfig.num_encoder_layers=1", "ModelConfig.num_decoder_layers=1"),
)


class Killed(BaseException):
    pass


@gin.configurable
class KillAfter(Hook):
    """Ends the run as a kill does, without a checkpoint."""

    def __init__(self, updates: int):
        self._updates = updates

    def after_step(self, loop):
        self._updates -= 1
        if self._updates == 0:
            raise Killed


@pytest.fixture
def bad_batch(monkeypatch):
    """Multiplies all weights after the update of one batch, which is known by its tokens once it has been seen."""
    seen: list[float] = []
    make_update = loop.make_update

    def make_bad(run, *arguments):
        update = make_update(run, *arguments)

        def with_bad_batch(features):
            metrics = update(features)
            tokens = features["encoder_input_tokens"]
            seen.append(float(tf.reduce_sum(tf.square(tf.cast(tokens, tf.float32)))))
            if len(seen) >= BAD_BATCH and seen[-1] == seen[BAD_BATCH - 1]:
                for weight in run.model.trainable_variables:
                    weight.assign(4.0 * weight)
            return metrics

        return with_bad_batch

    monkeypatch.setattr(loop, "make_update", make_bad)


def train(model_dir: pathlib.Path, *settings: str) -> None:
    commands.run(*launch.arguments(model_dir, *SETTINGS, *settings))


def weights_of(model_dir: pathlib.Path) -> dict[str, bytes]:
    """What the last checkpoint has, positions of the data (which are variants) apart."""
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints/step_00000010/state"))
    return {
        name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map() if "data/" not in name
    }


def test_a_run_goes_back_from_a_spike(tmp_path, bad_batch, capsys):
    train(tmp_path)
    (event,) = read_csv(str(tmp_path / "events.csv"))
    assert (event["step"], event["event"], event["spike_step"]) == ("4", "went_back", "7")
    assert float(event["loss"]) > 2 * float(event["median_loss"])
    losses = [float(row["loss"]) for row in launch.losses(tmp_path).values()]
    assert len(losses) == 10 and max(losses) < float(event["loss"])
    assert "going back to the checkpoint of step 4." in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_is_killed_goes_back_to_the_same_weights(tmp_path, bad_batch):
    """The 8th update is the first one after the run has gone back from the 7th."""
    train(tmp_path / "run")
    for updates in (6, 8):
        model_dir = tmp_path / f"killed_{updates}"
        shutil.copytree(tmp_path / "run" / "vocabulary", model_dir / "vocabulary")
        with pytest.raises(Killed):
            train(model_dir, "HOOKS=[@KillAfter()]", f"KillAfter.updates={updates}")
        train(model_dir)
        assert launch.losses(model_dir) == launch.losses(tmp_path / "run")
        assert (model_dir / "events.csv").read_text() == (tmp_path / "run" / "events.csv").read_text()
        assert weights_of(model_dir) == weights_of(tmp_path / "run")
