"""Whatever a user writes in gin, a command does what it says or ends with status 2 and one line, never a traceback."""

import contextlib
import io
import pathlib
import shutil

import gin
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from switch_tf.cli import main as command_line
from switch_tf.runs import study  # noqa: F401 (registers what bindings may refer to)
from tests.support import launch
from tests.support.gin_mutations import ALL_KINDS, Configuration, configurations, shipped, shipped_experiments

SMALL = [f"gin/models/{name}.gin" for name in ("switch_tiny_8", "switch_nano_16", "t5_tiny", "t5_nano")]
# A mistake is an example of its own; no files are written, and no times are judged.
FREELY = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


pytestmark = pytest.mark.usefixtures("at_the_root")


def run_or_refuse(*words: str) -> str | None:
    """Runs a command; returns its one line of error where it ends with status 2, None where it does what it says."""
    gin.clear_config()
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            command_line.main(words)
    except SystemExit as end:
        assert end.code == 2
        # A progress bar may have begun the line.
        lines = [line for line in errors.getvalue().replace("\r", "\n").splitlines() if "switch-tf: error: " in line]
        assert len(lines) == 1, errors.getvalue()
        return lines[0].partition("switch-tf: error: ")[2]
    return None


@settings(max_examples=40, derandomize=True, **FREELY)
@given(configurations(shipped_experiments(SMALL)))
def test_describe_describes_or_refuses(configuration: Configuration):
    run_or_refuse("describe", *configuration.words)


@pytest.mark.slow
@settings(max_examples=1000, **FREELY)
@given(configurations(shipped_experiments([*SMALL * 8, *shipped("models")])))  # Large ones take seconds.
def test_describe_describes_or_refuses_a_thousand(configuration: Configuration):
    run_or_refuse("describe", *configuration.words)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A model directory, for its vocabulary."""
    model_dir = tmp_path_factory.mktemp("trained")
    assert run_or_refuse(*launch.arguments(model_dir, *SMALL_RUN, "TRAIN_STEPS=1")) is None
    return model_dir


SMALL_RUN = ("ModelConfig.num_encoder_layers=1", "ModelConfig.num_decoder_layers=1", "NUM_EVAL_BATCHES=1")
# What is refused whatever it is for; a model or a batch that is large, but allowed, would only be slow.
SMALL_INTEGERS = ("0", "-1", "1", "2", "3", "7", "2147483648", "9223372036854775808", "0x" + "f" * 5000)


@pytest.mark.slow
@settings(max_examples=100, **FREELY)
@given(
    configurations(
        st.just(("tests/support/tiny.gin",)),
        ALL_KINDS | {"integers": SMALL_INTEGERS},
        left_alone=frozenset({"MODEL_DIR", "TRAIN_STEPS", "Experiment.model_dir", "train.steps"}),
    )
)
def test_train_makes_a_step_or_refuses(trained, tmp_path_factory, configuration: Configuration):
    model_dir = tmp_path_factory.mktemp("run")
    shutil.copytree(trained / "vocabulary", model_dir / "vocabulary")
    run_or_refuse(*launch.arguments(model_dir, *SMALL_RUN, *configuration.bindings, "TRAIN_STEPS=1"))
