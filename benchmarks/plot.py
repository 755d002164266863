"""Plots what `make bench` measured: layers relative to the dense layer, whole models relative to Hugging Face."""

import argparse
import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {"gather": "#0072B2", "einsum": "#E69F00", "bound": "#999999", "step": "#009E73", "generate": "#CC79A7"}
LABELS = {
    "gather": "gather dispatch",
    "einsum": "einsum dispatch",
    "bound": "lower bound: the experts' matmuls alone",
    "step": "training step",
    "generate": "generation of 64 tokens",
}


def points(rows: list[dict], **wanted) -> dict[str, list[float]]:
    """Selects rows and returns their columns: experts, ratio, and the distances to its quartiles."""
    picked = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return {
        "experts": [row["experts"] for row in picked],
        "ratio": [row["ratio"] for row in picked],
        "below": [row["ratio"] - row["ratio_low"] for row in picked],
        "above": [row["ratio_high"] - row["ratio"] for row in picked],
    }


def draw(axes, name: str, columns: dict[str, list[float]], places: list[float]) -> None:
    """Draws one line with error bars."""
    axes.errorbar(
        places,
        columns["ratio"],
        yerr=[columns["below"], columns["above"]],
        color=COLOURS[name],
        label=LABELS[name],
        marker="o",
        capsize=3,
    )


def main() -> None:
    """Reads both tables and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--feed_forward", required=True, metavar="JSON", help="of benchmarks.feed_forward")
    parser.add_argument("--peers", required=True, metavar="JSON", help="of benchmarks.peers")
    parser.add_argument("--output", required=True, metavar="PNG", help="where to save the picture")
    options = parser.parse_args()
    with open(options.feed_forward, encoding="utf-8") as file:
        layers = json.load(file)["rows"]
    with open(options.peers, encoding="utf-8") as file:
        peers = json.load(file)["rows"]

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name in ("einsum", "gather", "bound"):
        columns = points(layers, layer=name)
        draw(left, name, columns, columns["experts"])
    left.axhline(1.0, color="black", linewidth=0.8)
    left.set_xscale("log", base=2)
    left.set_xticks(columns["experts"], columns["experts"])
    left.set_ylim(bottom=0)
    left.set(xlabel="experts", ylabel="time / time of the dense layer", title="One layer, forward and backward")

    for name in ("step", "generate"):
        columns = points(peers, thing=name, system="huggingface")
        draw(right, name, columns, list(range(len(columns["experts"]))))
    right.axhline(1.0, color="black", linewidth=0.8)
    right.set_xticks(range(len(columns["experts"])), [experts or "dense T5" for experts in columns["experts"]])
    right.set_ylim(bottom=0)
    right.set(xlabel="experts", ylabel="times as fast as Hugging Face", title="Whole model, same weights and batch")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower left")
    figure.savefig(options.output, dpi=110)
    print(f"Drawn: {options.output}")


if __name__ == "__main__":
    main()
