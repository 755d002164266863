"""Line charts and heat maps as SVG text, with colors from the page's style, so that they follow its light or dark."""

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 26, 38
NUM_COLORS = 8


class Line(NamedTuple):
    """A line of a chart.

    label: for the legend and the tooltip.
    x, y: [T]; points where one is not finite are left out.
    style: classes of the page's style: "c0" to "c7" give its color, "thin" and "dashed" its stroke.
    band: (low [T], high [T]) to shade; None for none.
    has_dots: whether each point is marked, with its value as a tooltip.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    style: str = "c0"
    band: tuple[np.ndarray, np.ndarray] | None = None
    has_dots: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round values from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Writes a number for an axis: 1500 as "1.5k", 2e12 as "2T", 0.00012 as "1.2e-4"."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    power = min(5, int(math.log10(size) // 3)) if size >= 1000 else 0
    if size >= 1e18:
        return f"{value:.0e}".replace("e+", "e")
    return f"{float(f'{value / 1000**power:.4g}'):g}{' kMGTP'[power].strip()}"


def _extent(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([np.ravel(array) for array in arrays] or [np.array([])])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin


class _Scales(NamedTuple):
    """Maps data to the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: np.ndarray, y: np.ndarray) -> list[str]:
        left = _LEFT + (np.asarray(x) - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - _LEFT - _RIGHT)
        top = HEIGHT - _BOTTOM - (np.asarray(y) - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - _TOP - _BOTTOM)
        return [f"{a:.1f},{b:.1f}" for a, b in zip(left, np.clip(top, _TOP, HEIGHT - _BOTTOM))]


def _axes(scales: _Scales, title: str, x_label: str) -> list[str]:
    parts = [f'<text class="title" x="{_LEFT}" y="16">{html.escape(title)}</text>']
    for value in ticks(*scales.y):
        (place,) = scales.at(np.array([scales.x[0]]), np.array([value]))
        y = place.split(",")[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="y" x="{_LEFT - 5}" y="{float(y) + 4:.1f}">{short(value)}</text>')
    for value in ticks(*scales.x):
        (place,) = scales.at(np.array([value]), np.array([scales.y[0]]))
        x = place.split(",")[0]
        parts.append(f'<text class="x" x="{x}" y="{HEIGHT - _BOTTOM + 15}">{short(value)}</text>')
    parts.append(f'<text class="x" x="{(_LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 5}">{html.escape(x_label)}</text>')
    return parts


def _drawn(line: Line, scales: _Scales) -> str:
    keep = np.isfinite(line.x) & np.isfinite(line.y)
    x, y = np.asarray(line.x)[keep], np.asarray(line.y)[keep]
    title = f"<title>{html.escape(line.label)}</title>"
    parts = []
    if line.band is not None:
        low, high = (np.asarray(edge)[keep] for edge in line.band)
        edge = scales.at(np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]))
        parts.append(f'<path class="band {line.style}" d="M{"L".join(edge)}Z"/>')
    points = scales.at(x, y)
    if len(points) > 1:
        parts.append(f'<path class="line {line.style}" d="M{"L".join(points)}">{title}</path>')
    if line.has_dots or len(points) == 1:
        for point, at, value in zip(points, x, y):
            left, top = point.split(",")
            text = f"<title>{html.escape(line.label)}: {value:.4f} at {short(at)}</title>"
            parts.append(f'<circle class="dot {line.style}" cx="{left}" cy="{top}" r="2.5">{text}</circle>')
    return "".join(parts)


def line_chart(
    title: str,
    x_label: str,
    lines: Sequence[Line],
    y_limits: tuple[float, float] | None = None,
    references: Sequence[tuple[float, str]] = (),
) -> str:
    """Draws a chart.

    Args:
      title: what the values are.
      x_label: what the positions are.
      lines: drawn in order.
      y_limits: the range of the y axis; None for that of the values.
      references: values at which a horizontal dotted line is drawn, with its label.

    Returns:
      An `<svg>` element.
    """
    values = [line.y for line in lines] + [edge for line in lines for edge in line.band or ()]
    values += [np.array([value]) for value, _ in references]
    low_x, high_x = _extent([line.x for line in lines])
    scales = _Scales((max(low_x, 0.0) if high_x > 0 else low_x, high_x), y_limits or _extent(values))
    parts = _axes(scales, title, x_label)
    for value, label in references:
        place = scales.at(np.array([scales.x[0]]), np.array([value]))[0].split(",")[1]
        parts.append(f'<path class="reference" d="M{_LEFT} {place}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="label" x="{WIDTH - _RIGHT}" y="{float(place) - 4:.1f}">{html.escape(label)}</text>')
    parts += [_drawn(line, scales) for line in lines]
    return _svg(title, parts)


def _svg(title: str, parts: Sequence[str]) -> str:
    name = html.escape(title, quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _palette() -> np.ndarray:
    """uint8 [256, 3]: blue below the middle, nearly white there, red above it."""
    low, middle, high = np.array([33, 102, 172]), np.array([247, 247, 247]), np.array([178, 24, 43])
    share = np.linspace(-1, 1, 256).reshape(-1, 1)
    colors = np.where(share < 0, middle + (low - middle) * -share, middle + (high - middle) * share)
    return colors.round().astype(np.uint8)


def png(indices: np.ndarray) -> bytes:
    """Encodes uint8 [height, width] indices of the palette as a PNG image (RFC 2083)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = indices.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    # Every line begins with its filter: none.
    lines = np.concatenate([np.zeros([height, 1], np.uint8), indices.astype(np.uint8)], axis=1)
    chunks = (
        chunk(b"IHDR", header),
        chunk(b"PLTE", _palette().tobytes()),
        chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def heat_map(title: str, x_label: str, x: np.ndarray, values: np.ndarray, limit: float, top: float) -> str:
    """Draws a matrix over time: blue for values below 0, red for those above.

    Args:
      title: what it is of.
      x_label: what the positions are.
      x: [T], rising.
      values: [T, rows]; the first row is at the bottom.
      limit: the absolute value with the darkest color.
      top: what the upper edge is on the y axis: the number of rows, or more where a row stands for several.

    Returns:
      An `<svg>` element.
    """
    shares = np.clip(np.nan_to_num(values, nan=0.0) / limit, -1, 1)
    image = base64.b64encode(png(((shares.T[::-1] + 1) * 127.5).round())).decode()
    scales = _Scales((float(x[0]), float(max(x[-1], x[0] + 1))), (0.0, top))
    parts = _axes(scales, title, x_label)
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    parts.insert(
        0,
        f'<image x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{image}"/>',
    )
    return _svg(title, parts)
