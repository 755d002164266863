"""What a run writes for TensorBoard: scalars in one group for each sparse layer, charts, findings, hyperparameters."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from switch_tf.health.rules import Event

# The charts of the tab "Custom Scalars": title, and the tags of its lines as regular expressions.
_CHARTS = {
    "Quality": {
        "negative log perplexity": ("(train|eval)/neg_log_perplexity",),
        "accuracy": ("(train|eval)/accuracy",),
        "gradient norm": ("train/gradient_norm",),
        "tokens per second": ("train/tokens_per_second",),
    },
    "Routers": {
        "entropy": (r"(en|de)coder\.[^/]+/router_entropy",),
        "probability of the first choice": (r"(en|de)coder\.[^/]+/router_confidence",),
        "share of the tokens dropped": (r"(en|de)coder\.[^/]+/fraction_dropped",),
        "size of the output": (r"(en|de)coder\.[^/]+/output_size",),
        "scale of the input norm": (r"(en|de)coder\.[^/]+/norm_scale",),
        "relative step of the router": (r"(en|de)coder\.[^/]+/router_update",),
        "relative step of the experts": (r"(en|de)coder\.[^/]+/expert_update",),
    },
}


def tag_of(name: str, group: str) -> str:
    """Returns the tag of a column: TensorBoard folds tags into groups by their first part, so each layer gets one.

    Args:
      name: of the column: "loss", "encoder/layer_1/router_entropy".
      group: "train" or "eval".

    Returns:
      "train/loss"; "encoder.layer_1/router_entropy" and "encoder.layer_1/eval/router_entropy".
    """
    layer, _, measure = name.rpartition("/")
    if not layer.startswith(("encoder/", "decoder/")):
        return f"{group}/{name}"
    return f"{layer.replace('/', '.')}/{'' if group == 'train' else f'{group}/'}{measure}"


def _layout() -> layout_pb2.Layout:
    """Makes the layout of the tab "Custom Scalars"."""
    return layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=category,
                chart=[
                    layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=list(tags)))
                    for title, tags in charts.items()
                ],
            )
            for category, charts in _CHARTS.items()
        ]
    )


class Board:
    """Writes the event files of one run."""

    def __init__(self, folder: str):
        """Opens a new event file in a folder, and writes the layout of charts."""
        self._folder = folder
        self._writer = tf.summary.create_file_writer(folder)
        with self._writing():
            tf.summary.experimental.write_raw_pb(custom_scalar.pb(_layout()).SerializeToString(), step=0)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._writer.as_default():
            yield
        self._writer.flush()

    def write_settings(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Writes the run's settings, by which the tab "HParams" compares the runs of a study."""
        trial = os.path.basename(os.path.normpath(self._folder))
        summary = hparams_pb(dict(settings), trial_id=trial, start_time_secs=int(time.time()))
        with self._writing():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)

    def write_scalars(self, rows: Sequence[Mapping[str, float]], group: str) -> None:
        """Writes rows, each with its "step", by one operation for each: one for each scalar takes a sixth of the time
        of a small model's step."""
        with self._writing():
            for row in rows:
                parts = [
                    scalar_pb(tag_of(name, group), value).SerializeToString()
                    for name, value in row.items()
                    if name != "step"
                ]
                # Concatenated protocol buffers are merged ones.
                tf.summary.experimental.write_raw_pb(b"".join(parts), step=int(row["step"]))

    def write_loads(self, step: int, loads: Mapping[str, np.ndarray]) -> None:
        """Writes the expert loads of each sparse layer as a histogram."""
        with self._writing():
            for layer, load in loads.items():
                tf.summary.histogram(tag_of(f"{layer}/expert_load", "train"), load, step=step)

    def write_findings(self, events: Sequence[Event]) -> None:
        """Writes findings that begin or end as text."""
        with self._writing():
            for event in events:
                text = event.sentence if event.begins else "no longer holds"
                tf.summary.text(f"findings/{event.layer.replace('/', '.')}/{event.rule}", text, step=event.step)
