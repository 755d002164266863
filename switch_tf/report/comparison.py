"""Compares runs: a table, the curves of all (`loss.png`), where tokens went (`experts.png`)."""

import io
import itertools
import os
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
from switch_tf.planning.costs import human
from switch_tf.report.run_records import RunRecords
from switch_tf.report.unigram import unigram_neg_log_perplexity
from switch_tf.runs.experiment import Experiment

# Enough targets for a unigram model's frequencies to settle.
_UNIGRAM_BATCHES = 100
_COLUMNS = ("model", "parameters", "FLOPs/sequence", "steps", "held-out NLP", "accuracy")


def _unigram(experiment: Experiment) -> float:
    experiment.install_vocabulary()
    name, lengths, size = experiment.mixture_or_task, experiment.task_feature_lengths, experiment.batch_size
    train = training_dataset(name, lengths, size, experiment.seed, cache=experiment.cache).as_numpy_iterator()
    held_out = evaluation_batches(name, lengths, size, None, cache=experiment.cache)
    return unigram_neg_log_perplexity(itertools.islice(train, _UNIGRAM_BATCHES), held_out, experiment.model.vocab_size)


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


def plot_curves(runs: Sequence[RunRecords], unigram: float, path: str) -> None:
    """Draws the negative log perplexity of every run over its steps: training (thin), held-out (dots)."""
    figure, plot = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for index, run in enumerate(runs):
        color = f"C{index}"
        if "step" in run.steps:
            training = run.steps["neg_log_perplexity"]
            smooth = _smooth(training, max(1, len(training) // 50))
            plot.plot(run.steps["step"], smooth, color=color, alpha=0.4, linewidth=1)
        if "step" in run.evaluations:
            held_out = (run.evaluations["step"], run.evaluations["neg_log_perplexity"])
            plot.plot(*held_out, "o-", color=color, label=f"{run.name}, held-out")
    plot.axhline(unigram, color="gray", linestyle=":", label="unigram model, held-out")
    plot.set(
        xlabel="step", ylabel="negative log perplexity (nats per token; higher is better)", ylim=(unigram - 1, None)
    )
    plot.grid(alpha=0.3)
    plot.legend(loc="lower right", title="thin: training, running mean")
    _save(figure, path)


def plot_experts(run: RunRecords, path: str) -> bool:
    """Draws each expert's share of the tokens over the steps, one panel for each sparse layer; False if it is dense."""
    if not run.loads:
        return False
    columns = min(3, len(run.loads))
    lines = -(-len(run.loads) // columns)
    size = (1 + 4 * columns, 3 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for plot in grid.flat[len(run.loads) :]:
        plot.set_visible(False)
    num_experts = run.experiment.model.num_experts
    for plot, (layer, (steps, loads)) in zip(grid.flat, run.loads.items()):
        plot.stackplot(steps, loads.T, colors=plt.get_cmap("viridis")(np.linspace(0, 1, num_experts)))
        plot.hlines(
            np.arange(1, num_experts) / num_experts, *plot.get_xlim(), color="white", linewidth=0.4, linestyle=":"
        )
        plot.set(title=layer, xlabel="step", ylim=(0, 1))
        plot.margins(x=0)
    figure.supylabel("share of the tokens, by expert")
    figure.suptitle(f"Load of the {num_experts} experts of {run.name}")
    _save(figure, path)
    return True


def _row(run: RunRecords) -> list[str]:
    """What the table says of a run, of its last evaluation if there is one."""
    evaluations, costs = run.evaluations, run.costs
    is_evaluated = "step" in evaluations
    return [
        run.name,
        human(costs["parameters"]),
        human(costs["forward_flops_per_sequence"]),
        f"{evaluations['step'][-1]:.0f}" if is_evaluated else str(run.last_step),
        f"{evaluations['neg_log_perplexity'][-1]:.4f}" if is_evaluated else "",
        f"{evaluations['accuracy'][-1]:.4f}" if is_evaluated else "",
    ]


def compare(runs: Sequence[RunRecords], output: str) -> None:
    """Prints a table of the runs and writes `loss.png` and (for the first sparse one) `experts.png` into `output`."""
    storage.make_folder(output)
    unigram = _unigram(runs[-1].experiment)
    table = [*map(_row, runs), ["unigram model", "", "", "", f"{unigram:.4f}", ""]]
    alignment = ("left", *["right"] * (len(_COLUMNS) - 1))
    print(tabulate(table, _COLUMNS, tablefmt="plain", disable_numparse=True, colalign=alignment))
    print("NLP: negative log perplexity, the mean log likelihood of a target token in nats; higher is better.")

    curves, experts = os.path.join(output, "loss.png"), os.path.join(output, "experts.png")
    plot_curves(runs, unigram, curves)
    is_sparse = any(plot_experts(run, experts) for run in runs)
    print(f"Wrote {curves}{f' and {experts}' if is_sparse else ''}.")
