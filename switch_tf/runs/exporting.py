"""The work of `export --format=saved_model`."""

import dataclasses
import os
import time

from switch_tf.checkpoints.folder import checkpoints_of
from switch_tf.data.task_lookup import vocabulary_of
from switch_tf.decoding.settings import Decoding
from switch_tf.errors import SettingError
from switch_tf.export.model_functions import Shapes
from switch_tf.export.saved_model import export_saved_model, in_bfloat16
from switch_tf.interop.formats import new_folder
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import load_run

# Short requests do not wait for a graph of the longest inputs.
_SHORT = 64
BATCH_SIZES = (1, 16)


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """What a command line asks for.

    Attributes:
      output: the folder to write; a SavedModel goes into a folder of its own there, named by the step.
      step: which checkpoint; None for the newest.
      dtype: "float32" or "bfloat16", of the weights.
      lengths: input lengths that get a graph; None for 64 and that of the run.
      batch_sizes: batch sizes that get a graph.
    """

    output: str
    step: int | None = None
    dtype: str = "float32"
    lengths: tuple[int, ...] | None = None
    batch_sizes: tuple[int, ...] = BATCH_SIZES


def on_one_device(experiment: Experiment) -> Experiment:
    """Returns the experiment without its mesh: exports are for one device, whatever mesh trained the weights."""
    return dataclasses.replace(experiment, engine="single", mesh_shape="", layout_rules="", num_logical_devices=None)


def path_of_checkpoint(model_dir: str, step: int) -> str:
    """Returns the folder of one of a model directory's checkpoints."""
    return checkpoints_of(model_dir).path(step)


def export_text_model(request: ExportRequest) -> str:
    """Writes a SavedModel.

    Args:
      request: what to write; the model is that of gin's configuration.

    Returns:
      A sentence that tells what was written, how large it is and how long it took.

    Raises:
      SettingError: if there is no such checkpoint, or the output exists or cannot be written.
    """
    start = time.monotonic()
    experiment = on_one_device(Experiment())
    decoding = Decoding()
    lengths = experiment.task_feature_lengths
    shapes = Shapes(
        request.lengths or tuple(sorted({min(_SHORT, lengths["inputs"]), lengths["inputs"]})),
        decoding.max_length or lengths["targets"],
        request.batch_sizes,
    )
    run = load_run(experiment, request.step)
    step = int(run.step.numpy())
    folder = os.path.join(request.output, str(step))
    vocabulary = vocabulary_of(experiment.mixture_or_task)
    sentencepiece_model = getattr(vocabulary, "sp_model", None)
    if sentencepiece_model is None:
        raise SettingError(f"MIXTURE_OR_TASK = '{experiment.mixture_or_task}' has no SentencePiece vocabulary.")
    model = in_bfloat16(run.model) if request.dtype == "bfloat16" else run.model
    with new_folder(folder, "--output") as unfinished:
        size = export_saved_model(model, sentencepiece_model, decoding, shapes, unfinished)
    return (
        f"{folder}: weights {size.weights / 1e6:,.1f} MB ({request.dtype}), graphs {size.graphs / 1e6:,.1f} MB, "
        f"{time.monotonic() - start:,.0f} s."
    )
