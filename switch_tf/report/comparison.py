"""Compares model directories: a table, the curves of all (`loss.png`), where tokens went (`experts.png`)."""

import io
import itertools
import os
from collections import defaultdict
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # No screen is needed to write a file.
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from tabulate import tabulate

from switch_tf import storage
from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.data.training_batches import training_dataset
from switch_tf.errors import SettingError
from switch_tf.planning.costs import description, human
from switch_tf.report.unigram import unigram_neg_log_perplexity
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.model_directory import read_description
from switch_tf.runs.recorder import read_csv

# Enough targets for a unigram model's frequencies to settle.
_UNIGRAM_BATCHES = 100
_COLUMNS = ("model", "parameters", "FLOPs/sequence", "steps", "held-out NLP", "accuracy")


def _experiment(model_dir: str) -> Experiment:
    gin_config.load([], [f"MODEL_DIR = {model_dir!r}"], recorded=read_description(model_dir))
    experiment = Experiment()
    experiment.install_vocabulary()
    return experiment


def _unigram(experiment: Experiment) -> float:
    name, lengths, size = experiment.mixture_or_task, experiment.task_feature_lengths, experiment.batch_size
    train = training_dataset(name, lengths, size, experiment.seed, cache=experiment.cache).as_numpy_iterator()
    held_out = evaluation_batches(name, lengths, size, None, cache=experiment.cache)
    return unigram_neg_log_perplexity(itertools.islice(train, _UNIGRAM_BATCHES), held_out, experiment.model.vocab_size)


def _column(rows: Sequence[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over the `width` values up to each one."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    starts = np.maximum(np.arange(1, len(values) + 1) - width, 0)
    ends = np.arange(1, len(values) + 1)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _save(figure: plt.Figure, path: str) -> None:
    image = io.BytesIO()
    figure.savefig(image, dpi=120)
    plt.close(figure)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(image.getvalue())


def plot_curves(model_dirs: Sequence[str], unigram: float, path: str) -> None:
    """Draws the negative log perplexity of every run over its steps: training (thin), held-out (dots)."""
    figure, plot = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for index, model_dir in enumerate(model_dirs):
        steps = read_csv(os.path.join(model_dir, "metrics.csv"))
        held_out = read_csv(os.path.join(model_dir, "eval.csv"))
        color = f"C{index}"
        smooth = _smooth(_column(steps, "neg_log_perplexity"), max(1, len(steps) // 50))
        plot.plot(_column(steps, "step"), smooth, color=color, alpha=0.4, linewidth=1)
        label = f"{os.path.basename(os.path.normpath(model_dir))}, held-out"
        plot.plot(_column(held_out, "step"), _column(held_out, "neg_log_perplexity"), "o-", color=color, label=label)
    plot.axhline(unigram, color="gray", linestyle=":", label="unigram model, held-out")
    plot.set(
        xlabel="step", ylabel="negative log perplexity (nats per token; higher is better)", ylim=(unigram - 1, None)
    )
    plot.grid(alpha=0.3)
    plot.legend(loc="lower right", title="thin: training, running mean")
    _save(figure, path)


def plot_experts(model_dir: str, path: str) -> bool:
    """Draws each expert's share of the tokens over the steps, one panel for each sparse layer; False if it is dense."""
    layers = defaultdict(list)
    for row in read_csv(os.path.join(model_dir, "experts.csv")):
        layers[row["layer"]].append(row)
    if not layers:
        return False
    columns = min(3, len(layers))
    lines = -(-len(layers) // columns)
    size = (1 + 4 * columns, 3 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for plot in grid.flat[len(layers) :]:
        plot.set_visible(False)
    for plot, (layer, rows) in zip(grid.flat, layers.items()):
        loads = [name for name in rows[0] if name.startswith("load_")]
        shares = [_column(rows, name) for name in loads]
        plot.stackplot(_column(rows, "step"), shares, colors=plt.get_cmap("viridis")(np.linspace(0, 1, len(loads))))
        plot.hlines(
            np.arange(1, len(loads)) / len(loads), *plot.get_xlim(), color="white", linewidth=0.4, linestyle=":"
        )
        plot.set(title=layer, xlabel="step", ylim=(0, 1))
        plot.margins(x=0)
    figure.supylabel("share of the tokens, by expert")
    figure.suptitle(f"Load of the {len(loads)} experts of {os.path.basename(os.path.normpath(model_dir))}")
    _save(figure, path)
    return True


def compare(model_dirs: Sequence[str], output: str) -> None:
    """Prints a table of the runs and writes `loss.png` and (for the first sparse one) `experts.png` into `output`.

    Raises:
      SettingError: if a directory holds no run that has been evaluated.
    """
    storage.make_folder(output)
    experiments = [_experiment(model_dir) for model_dir in model_dirs]
    table = []
    for model_dir, experiment in zip(model_dirs, experiments):
        rows = read_csv(os.path.join(model_dir, "eval.csv"))
        if not rows:
            raise SettingError(f"MODEL_DIR = '{model_dir}' has no evaluation in its eval.csv yet: train it further.")
        lengths = experiment.task_feature_lengths
        costs = description(experiment.model, lengths["inputs"], lengths["targets"])
        last = rows[-1]
        table.append(
            [
                os.path.basename(os.path.normpath(model_dir)),
                human(costs["parameters"]),
                human(costs["forward_flops_per_sequence"]),
                last["step"],
                f"{float(last['neg_log_perplexity']):.4f}",
                f"{float(last['accuracy']):.4f}",
            ]
        )
    unigram = _unigram(experiments[-1])
    table.append(["unigram model", "", "", "", f"{unigram:.4f}", ""])
    alignment = ("left", *["right"] * (len(_COLUMNS) - 1))
    print(tabulate(table, _COLUMNS, tablefmt="plain", disable_numparse=True, colalign=alignment))
    print("NLP: negative log perplexity, the mean log likelihood of a target token in nats; higher is better.")

    curves, experts = os.path.join(output, "loss.png"), os.path.join(output, "experts.png")
    plot_curves(model_dirs, unigram, curves)
    is_sparse = any(plot_experts(model_dir, experts) for model_dir in model_dirs)
    print(f"Wrote {curves}{f' and {experts}' if is_sparse else ''}.")
