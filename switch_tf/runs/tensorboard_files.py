"""What a run writes for TensorBoard: scalars in one group for each sparse layer, charts, findings, hyperparameters."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb

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


def _finding_tag(event: Event) -> str:
    return f"findings/{event.layer.replace('/', '.')}/{event.rule}"


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

    def __init__(self, folder: str, trial: str):
        """Opens a new event file, and writes the layout of charts.

        Args:
          folder: on this machine's disk.
          trial: what tells the run from others in the tab "HParams": its model directory.
        """
        self._trial = trial
        self._writer = tf.summary.create_file_writer(folder)
        self._write([(0, [custom_scalar.pb(_layout())])])

    def _write(self, steps: Sequence[tuple[int, Sequence[Summary]]]) -> None:
        """Writes the summaries of each step by one operation; one for each takes long beside a small model's step."""
        with self._writer.as_default():
            for step, summaries in steps:
                # Concatenated protocol buffers are merged ones.
                data = b"".join(summary.SerializeToString() for summary in summaries)
                tf.summary.experimental.write_raw_pb(data, step=step)
        self._writer.flush()

    def write_settings(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Writes the run's settings, by which the tab "HParams" compares the runs of a study."""
        self._write([(0, [hparams_pb(dict(settings), trial_id=self._trial, start_time_secs=int(time.time()))])])

    def write_scalars(self, rows: Sequence[Mapping[str, float]], group: str) -> None:
        """Writes rows, each with its "step"."""
        self._write(
            [
                (int(row["step"]), [scalar_pb(tag_of(name, group), row[name]) for name in row if name != "step"])
                for row in rows
            ]
        )

    def write_loads(self, step: int, loads: Mapping[str, np.ndarray]) -> None:
        """Writes the expert loads of each sparse layer as a histogram."""
        histograms = [histogram_pb(tag_of(f"{layer}/expert_load", "train"), load) for layer, load in loads.items()]
        self._write([(step, histograms)])

    def write_findings(self, events: Sequence[Event]) -> None:
        """Writes findings that begin or end as text."""
        self._write(
            [
                (event.step, [text_pb(_finding_tag(event), event.sentence if event.begins else "no longer holds")])
                for event in events
            ]
        )
