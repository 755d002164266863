"""Hooks that measure: what counts as better, what is saved and recorded, which steps are profiled."""

import math
import pathlib
import types

import pytest
import tensorflow as tf

from switch_tf.checkpoints.manifest import Score
from switch_tf.errors import SettingError
from switch_tf.evaluation.tasks import TaskEvaluation
from switch_tf.partitioning.processes import Processes
from switch_tf.runs.hooks import ProfileSteps, ScoreTasks


def loop_of(step: int = 0, model_dir: pathlib.Path | None = None) -> types.SimpleNamespace:
    said = []
    return types.SimpleNamespace(
        step=step,
        recorder=None,
        score=None,
        checkpoint_requested=False,
        stopped_by=None,
        is_ending=False,
        said=said,
        write_metrics=lambda: None,
        progress=types.SimpleNamespace(say=said.append, restart_clock=lambda: None),
        run=types.SimpleNamespace(
            engine=types.SimpleNamespace(processes=Processes(), is_first_process=True),
            experiment=types.SimpleNamespace(model_dir=str(model_dir)),
        ),
    )


def scores_of(hook: ScoreTasks, loop: types.SimpleNamespace, values: list[float]) -> list[bool]:
    """Acts once for each value of the metric; returns whether a checkpoint was asked for."""
    asked = []
    for value in values:
        hook._evaluate = lambda value=value: types.SimpleNamespace(scores={"echo": {"exact": value}})
        loop.checkpoint_requested, loop.score = False, None
        hook.act(loop)
        asked.append(loop.checkpoint_requested)
    return asked


def test_a_checkpoint_is_asked_for_where_the_metric_is_higher_than_ever():
    hook, loop = ScoreTasks(1, TaskEvaluation("echo", best_metric="echo/exact")), loop_of()
    assert scores_of(hook, loop, [1.0, 3.0, 3.0, 2.0, math.nan, 4.0]) == [True, True, False, False, False, True]
    assert loop.score == Score("echo/exact", 4.0)
    assert loop.said[0] == "step 0: echo/exact 1.00"


def test_without_a_best_metric_none_is_asked_for():
    hook, loop = ScoreTasks(1, TaskEvaluation("echo")), loop_of()
    assert scores_of(hook, loop, [1.0, 2.0]) == [False, False]
    assert loop.score is None


def test_an_evaluation_is_not_made_when_the_run_stops():
    hook, loop = ScoreTasks(5, TaskEvaluation("echo")), loop_of(step=5)
    assert hook.is_due(loop)
    loop.stopped_by, loop.is_ending = 15, True
    assert not hook.is_due(loop)


def test_a_best_metric_needs_a_task():
    with pytest.raises(SettingError, match="BEST_METRIC = 'echo/exact' needs EVAL_TASK"):
        ScoreTasks(1, TaskEvaluation(best_metric="echo/exact"))


def test_the_steps_asked_for_are_profiled(tmp_path):
    hook, loop = ProfileSteps((2, 3)), loop_of(model_dir=tmp_path)
    hook.on_start(loop)
    running = []
    for step in range(1, 5):
        tf.add(1, step)
        running.append(hook._is_on)
        loop.step = step
        hook.after_step(loop)
    hook.on_exit(loop)
    assert running == [False, True, True, False]
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize("steps", [(3, 2), (0, 2), (1,), (1, 2, 3)])
def test_a_profile_is_of_a_range_of_steps(steps):
    with pytest.raises(SettingError, match=r"PROFILE_STEPS = .* must be a first and a last step"):
        ProfileSteps(steps)
