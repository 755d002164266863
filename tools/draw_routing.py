"""Draws docs/images/routing.png: six tokens, three experts, two capacity factors. `python tools/draw_routing.py`.

The words and the router's weights are invented, so that the choices are those of Figure 3 of the paper: experts 2, 1,
1, 1, 2, 3. Probabilities, choices, slots and gates are computed by the library.
"""

import io
import pathlib

import matplotlib

matplotlib.use("Agg")  # Works without a display.
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from PIL import Image

from switch_tf.layers.initializers import weights_from_seed
from switch_tf.layers.routing import Routing, expert_capacity
from switch_tf.layers.token_choice import SwitchRouter

WORDS = ("The", "small", "brown", "fox", "is", "jumping")
# The router's weights, one row for each word: the words are one-hot vectors here.
KERNEL = ((0.2, 1.3, 0.3), (1.8, 0.1, 0.2), (1.4, 0.4, -0.2), (1.1, 0.2, 0.6), (-0.3, 1.6, 0.5), (0.4, -0.2, 1.7))
NUM_EXPERTS = 3

# Okabe and Ito's colours, which colour-blind readers can tell apart; the path of a dropped token is dashed as well.
EXPERT_COLORS = ("#0072B2", "#009E73", "#B8609A")
OVERFLOW_COLOR = "#D55E00"
INK, FAINT = "#222222", "#8a8a8a"

# In hundredths of an inch.
WIDTH, PANEL_HEIGHT, HEADER_HEIGHT = 900, 316, 62
ROW, CELL = 40, 52
TOKEN_RIGHT, HEAT_LEFT = 92, 104
BOX_LEFT, SLOT_WIDTH, BOX_WIDTH, SLOT_HEIGHT, BOX_PAD, BOX_GAP = 400, 92, 190, 24, 4, 9
OUTPUT_LEFT = 716


def route(capacity_factor: float) -> tuple[Routing, np.ndarray]:
    """Routes the words with the library's router: (routing, float32 [S, E] probabilities)."""
    router = SwitchRouter(d_model=len(WORDS), num_experts=NUM_EXPERTS, name="router")
    with weights_from_seed(0):
        router.build()
    router.kernel.assign(KERNEL)
    tokens = tf.expand_dims(tf.eye(len(WORDS)), 0)
    capacity = expert_capacity(len(WORDS), NUM_EXPERTS, capacity_factor, min_expert_capacity=1)
    routing = router(tokens, tf.ones([1, len(WORDS)]), capacity=capacity)
    return routing, tf.nn.softmax(routing.logits)[0].numpy()


def tint(color: str, strength: float) -> tuple[float, float, float]:
    """Mixes a colour with white."""
    red, green, blue = (1 - strength * (1 - part) for part in matplotlib.colors.to_rgb(color))
    return red, green, blue


def curve(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """Draws an arrow that starts and ends horizontally."""
    middle = (start[0] + end[0]) / 2
    path = Path([start, (middle, start[1]), (middle, end[1]), end], [1, 4, 4, 4])
    axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>,head_length=4,head_width=2", color=color, lw=1.5))


def row_center(token: int) -> float:
    """Height of a token's row."""
    return PANEL_HEIGHT - 72 - ROW * token


def draw_tokens(axes: Axes, probabilities: np.ndarray, choices: np.ndarray) -> None:
    """Draws the words and the router's probabilities, with its choices framed."""
    for token, word in enumerate(WORDS):
        y = row_center(token)
        axes.text(TOKEN_RIGHT, y, word, ha="right", va="center", fontsize=11, color=INK)
        for expert, probability in enumerate(probabilities[token]):
            left = HEAT_LEFT + CELL * expert
            shade = tint("#1d2733", 0.02 + 0.95 * probability**1.2)
            axes.add_patch(Rectangle((left, y - ROW / 2), CELL, ROW, facecolor=shade, edgecolor="white", lw=1.5))
            ink = "white" if probability > 0.62 else INK
            axes.text(left + CELL / 2, y, f"{probability:.2f}", ha="center", va="center", fontsize=9.5, color=ink)
    for expert, color in enumerate(EXPERT_COLORS):
        where = (HEAT_LEFT + CELL * (expert + 0.5), row_center(0) + ROW / 2 + 9)
        axes.text(*where, f"E{expert + 1}", ha="center", va="center", fontsize=9.5, color=color, fontweight="bold")
    for token, expert in enumerate(choices):
        corner = (HEAT_LEFT + CELL * expert + 2, row_center(token) - ROW / 2 + 2)
        frame = Rectangle(corner, CELL - 4, ROW - 4, fill=False, edgecolor=EXPERT_COLORS[expert], lw=2.6, zorder=3)
        axes.add_patch(frame)


def slot_centers(capacity: int) -> list[list[float]]:
    """Heights of the slots of each expert; the boxes of the experts are centered vertically."""
    box_height = capacity * SLOT_HEIGHT + 2 * BOX_PAD
    total = NUM_EXPERTS * box_height + (NUM_EXPERTS - 1) * BOX_GAP
    top = (row_center(0) + row_center(len(WORDS) - 1) + total) / 2
    return [
        [top - expert * (box_height + BOX_GAP) - BOX_PAD - SLOT_HEIGHT * (place + 0.5) for place in range(capacity)]
        for expert in range(NUM_EXPERTS)
    ]


def draw_experts(axes: Axes, centers: list[list[float]], filled: np.ndarray) -> None:
    """Draws a box for each expert, with its empty slots."""
    for expert, places in enumerate(centers):
        color = EXPERT_COLORS[expert]
        bottom, height = places[-1] - SLOT_HEIGHT / 2 - BOX_PAD, len(places) * SLOT_HEIGHT + 2 * BOX_PAD
        style = {"boxstyle": "round,pad=0,rounding_size=6", "facecolor": tint(color, 0.07), "edgecolor": color}
        axes.add_patch(FancyBboxPatch((BOX_LEFT, bottom), BOX_WIDTH, height, lw=1.3, **style))
        label_x = BOX_LEFT + (BOX_PAD + SLOT_WIDTH + BOX_WIDTH) / 2
        label = {"ha": "center", "va": "center", "fontsize": 10.5, "color": color, "fontweight": "bold"}
        axes.text(label_x, bottom + height / 2, f"expert E{expert + 1}", **label)
        for y in places[filled[expert] :]:
            draw_slot(axes, y, "empty", "white", FAINT, linestyle=(0, (2, 2)), fontstyle="italic")


def draw_slot(axes: Axes, y: float, text: str, face, ink: str, linestyle="-", fontstyle: str = "normal") -> None:
    """Draws one slot."""
    corner = (BOX_LEFT + BOX_PAD + 1, y - SLOT_HEIGHT / 2 + 1.5)
    box = Rectangle(corner, SLOT_WIDTH, SLOT_HEIGHT - 3, facecolor=face, edgecolor=ink, lw=0.9, ls=linestyle, zorder=2)
    axes.add_patch(box)
    size = 10 if fontstyle == "normal" else 8.5
    where = (BOX_LEFT + BOX_PAD + 1 + SLOT_WIDTH / 2, y - 0.5)
    axes.text(*where, text, ha="center", va="center", fontsize=size, color=ink, fontstyle=fontstyle, zorder=3)


def draw_overflow(axes: Axes, token: int, floor: float) -> None:
    """Draws the path of a token without a slot: below all experts, to its own residual."""
    y, left, right = row_center(token), HEAT_LEFT + NUM_EXPERTS * CELL + 4, OUTPUT_LEFT - 8
    down, up, bend = left + 62, right - 58, 20
    points = [(left, y), (down - bend, y), (down, y), (down, y - bend), (down, floor + bend), (down, floor)]
    points += [(down + bend, floor), (up - bend, floor), (up, floor), (up, floor + bend)]
    points += [(up, y - bend), (up, y), (up + bend, y), (right, y)]
    codes = [1, 2, 3, 3, 2, 3, 3, 2, 3, 3, 2, 3, 3, 2]
    line = {"edgecolor": OVERFLOW_COLOR, "lw": 1.9, "ls": (0, (4, 2)), "fill": False, "zorder": 5}
    axes.add_patch(PathPatch(Path(points, codes), **line))
    head = {"arrowstyle": "-|>,head_length=5,head_width=2.5", "color": OVERFLOW_COLOR, "zorder": 5}
    axes.add_patch(FancyArrowPatch((right - 8, y), (right + 3, y), shrinkA=0, shrinkB=0, **head))
    middle = BOX_LEFT + BOX_WIDTH / 2
    note = {"ha": "center", "va": "center", "fontsize": 9.5, "color": OVERFLOW_COLOR, "zorder": 6}
    patch = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    axes.text(middle, floor, f"no slot left for “{WORDS[token]}”", bbox=patch, **note)


def draw_panel(axes: Axes, capacity_factor: float) -> None:
    """Draws the paths of all tokens at one capacity factor."""
    routing, probabilities = route(capacity_factor)
    capacity, choices = routing.capacity, routing.expert[0, :, 0].numpy()
    slots, gates = routing.slot[0, :, 0].numpy(), routing.gate[0, :, 0].numpy()
    centers = slot_centers(capacity)
    draw_tokens(axes, probabilities, choices)
    draw_experts(axes, centers, routing.filled[0].numpy())
    for token, (expert, slot, gate) in enumerate(zip(choices, slots, gates)):
        y, color = row_center(token), EXPERT_COLORS[expert]
        has_slot = slot < NUM_EXPERTS * capacity
        if has_slot:
            y_slot = centers[expert][slot % capacity]
            draw_slot(axes, y_slot, WORDS[token], tint(color, 0.25), INK)
            curve(axes, (HEAT_LEFT + NUM_EXPERTS * CELL + 4, y), (BOX_LEFT - 1, y_slot), color)
            curve(axes, (BOX_LEFT + BOX_WIDTH + 2, y_slot), (OUTPUT_LEFT - 5, y), color)
        else:
            draw_overflow(axes, token, floor=centers[-1][-1] - SLOT_HEIGHT / 2 - BOX_PAD - 22)
        term = rf"$h\;+\;${gate:.2f}$\,\cdot\,$E{expert + 1}$(x)$" if has_slot else r"$h$   alone"
        ink = INK if has_slot else OVERFLOW_COLOR
        axes.text(OUTPUT_LEFT, y, term, ha="left", va="center", fontsize=11, color=ink)
    title, height = f"Capacity factor {capacity_factor}", PANEL_HEIGHT - 15
    rule = rf"{len(WORDS)} tokens / {NUM_EXPERTS} experts $\times$ {capacity_factor} = {capacity} slots for each expert"
    axes.text(14, height, title, fontsize=11.5, fontweight="bold", va="center", color=INK)
    axes.text(WIDTH - 14, height, rule, fontsize=10.5, ha="right", va="center", color="#555555")
    axes.plot([14, WIDTH - 14], [PANEL_HEIGHT, PANEL_HEIGHT], color="#d0d0d0", lw=1)


def main() -> None:
    """Writes docs/images/routing.png."""
    height = HEADER_HEIGHT + 2 * PANEL_HEIGHT
    figure = plt.figure(figsize=(WIDTH / 100, height / 100), facecolor="white")
    for panel, capacity_factor in enumerate((1.0, 1.5)):
        bottom = (1 - panel) * PANEL_HEIGHT / height
        axes = figure.add_axes((0, bottom, 1, PANEL_HEIGHT / height), xlim=(0, WIDTH), ylim=(0, PANEL_HEIGHT))
        axes.axis("off")
        draw_panel(axes, capacity_factor)
    header = figure.add_axes((0, 2 * PANEL_HEIGHT / height, 1, HEADER_HEIGHT / height), xlim=(0, WIDTH), ylim=(0, 1))
    header.axis("off")
    columns = {
        TOKEN_RIGHT - 38: ("token", r"$x = \mathrm{norm}(h)$"),
        HEAT_LEFT + 1.5 * CELL: ("router", r"$p = \mathrm{softmax}(x\,W_r)$"),
        BOX_LEFT + BOX_WIDTH / 2: ("slots and experts", "first come, first served"),
        OUTPUT_LEFT + 76: ("after the layer", r"residual $h$ + gate $\times$ output"),
    }
    for x, (title, detail) in columns.items():
        header.text(x, 0.68, title, ha="center", va="center", fontsize=12, fontweight="bold", color=INK)
        header.text(x, 0.26, detail, ha="center", va="center", fontsize=10, color="#555555")
    path = pathlib.Path(__file__).parents[1] / "docs" / "images" / "routing.png"
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=200)
    # A palette reduces the file to a third.
    Image.open(drawn).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
