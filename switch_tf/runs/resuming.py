"""Where a run goes on: from its newest checkpoint, or from the one before where that is damaged."""

from switch_tf.checkpoints.folder import DamagedCheckpoint
from switch_tf.data.training_batches import TrainingBatches
from switch_tf.runs.loss_watch import spikes_of
from switch_tf.runs.run import Run


def restore_newest(run: Run, batches: TrainingBatches) -> int | None:
    """Restores the newest checkpoint that can be read to its end, and sets newer ones aside; nothing is deleted.

    All processes call this and agree: a checkpoint is damaged if any of them cannot read its shards. If the run has
    gone back to the checkpoint because of a spike, the batches up to the spike's are passed over.

    Args:
      run: with an optimizer.
      batches: the training data.

    Returns:
      The step of the checkpoint; None where there is none.

    Raises:
      SettingError: if all checkpoints are damaged, one belongs to another run, or a bucket does not give it.
    """
    engine, checkpoints = run.engine, run.checkpoints
    damaged: dict[int, DamagedCheckpoint] = {}
    for step in reversed(engine.processes.broadcast_from_first(checkpoints.steps())):
        error = _restore(run, step, batches)
        if not engine.processes.any_process(error is not None):
            for other, reason in damaged.items():
                kept = checkpoints.set_aside(other) if engine.is_first_process else ""
                engine.say(f"{reason} It is kept as {kept}; the run goes on from step {step}.")
            if checkpoints.manifest(step).has_weights_alone:
                engine.say(f"Starting from the weights in {run.experiment.model_dir}, at step {step}.")
            else:
                engine.say(f"Resuming {run.experiment.model_dir} from step {step}.")
                _pass_over(run, batches, step)
            return step
        damaged[step] = error or checkpoints.damaged(step, "another process could not read it")
    for error in damaged.values():
        raise error
    return None


def _restore(run: Run, step: int, batches: TrainingBatches) -> DamagedCheckpoint | None:
    try:
        if run.checkpoints.manifest(step).has_weights_alone:
            run.continue_from_weights(step)
        else:
            run.restore(step, batches)
    except DamagedCheckpoint as error:
        return error
    return None


def _pass_over(run: Run, batches: TrainingBatches, step: int) -> None:
    """Passes over the batches between a checkpoint and the spike from which the run has gone back to it."""
    spike = spikes_of(run.experiment.model_dir).get(step)
    # Processes may see different states of a file system.
    for last in run.engine.processes.broadcast_from_first([] if spike is None else [spike.step]):
        run.engine.say(f"The batches of steps {step + 1} to {last} are passed over.")
        batches.pass_over(last - step)
