"""Elements of self-contained HTML pages: one style sheet for light and dark, tables, grids of figures."""

import html
from collections.abc import Sequence

_LIGHT = ["#1f77b4", "#d95f02", "#1b8a5a", "#c0392b", "#7b4ea3", "#8c564b", "#c2529d", "#5b6770"]
_DARK = ["#6cb2eb", "#ff9f4a", "#5fd39a", "#ff7b6b", "#b794f4", "#c9a28f", "#f28bd0", "#aab4be"]


def _colors(values: Sequence[str]) -> str:
    return "".join(f"--c{index}:{value};" for index, value in enumerate(values))


_STYLE = (
    f":root{{--text:#1c2126;--dim:#5b6570;--page:#fff;--card:#f6f7f9;--grid:#dfe3e8;{_colors(_LIGHT)}}}"
    "@media(prefers-color-scheme:dark){:root{--text:#e6e9ec;--dim:#a2abb5;--page:#14181c;--card:#1d2328;"
    f"--grid:#343c44;{_colors(_DARK)}}}}}"
    """
:root{color-scheme:light dark}
body{margin:0 auto;padding:1rem;max-width:84rem;background:var(--page);color:var(--text);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.2rem;border-bottom:1px solid var(--grid)}h3{font-size:1.05rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0;background:var(--card);border-radius:.5rem;padding:.4rem}
svg.chart{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--dim)}svg .title{fill:var(--text);font-weight:600}svg .x{text-anchor:middle}
svg .y,svg .label{text-anchor:end}svg image{image-rendering:pixelated}
svg path{fill:none}.grid-line,svg .grid{stroke:var(--grid);stroke-width:1}
svg .reference{stroke:var(--dim);stroke-dasharray:2 3}
svg .line{stroke-width:1.8;stroke-linejoin:round}svg .thin{stroke-width:1;opacity:.5}
svg .dashed{stroke-dasharray:5 3}svg path.band{stroke:none;opacity:.18}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.6rem 0;font-size:.9rem;color:var(--dim)}
.legend i{display:inline-block;width:1.6rem;border-top:3px solid;vertical-align:middle;margin-right:.3rem}
.legend i.dashed{border-top-style:dashed}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;margin:.5rem 0}
th,td{text-align:right;padding:.25rem .6rem;border-bottom:1px solid var(--grid);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--dim);font-weight:600}
table.wrapped td,table.wrapped th{text-align:left}
table.wrapped td+td{white-space:normal;overflow-wrap:anywhere;min-width:9rem}
li.finding{margin:.4rem 0}.since{color:var(--dim)}.good{color:var(--c2)}
"""
    + "".join(
        f"svg .line.c{index}{{stroke:var(--c{index})}}svg .dot.c{index},svg .band.c{index}{{fill:var(--c{index})}}"
        f".legend .c{index}{{border-color:var(--c{index})}}"
        for index in range(len(_LIGHT))
    )
)


def page(title: str, body: str) -> str:
    """Returns a whole page that loads nothing from elsewhere."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], wrapped: bool = False) -> str:
    """Returns a table that scrolls sideways on a narrow screen; with `wrapped`, long values are broken instead."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = ["<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row) + "</tr>" for row in rows]
    kind = ' class="wrapped"' if wrapped else ""
    return f'<div class="scroll"><table{kind}><tr>{head}</tr>{"".join(lines)}</table></div>\n'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Returns the legend of lines, (style, label) each."""
    spans = "".join(f'<span><i class="{style}"></i>{html.escape(label)}</span>' for style, label in entries)
    return f'<div class="legend">{spans}</div>' if entries else ""


def figure_grid(figures: Sequence[str], entries: Sequence[tuple[str, str]] = ()) -> str:
    """Returns figures side by side, as many as the screen is wide, below their common legend."""
    return legend(entries) + '<div class="grid">' + "".join(f"<figure>{each}</figure>" for each in figures) + "</div>\n"
