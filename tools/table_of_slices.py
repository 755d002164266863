"""Compiles the layouts in docs/tpu.md's table, and writes it: `python -m tools.table_of_slices [LAYOUT ...]`.

Each compilation takes minutes and up to 18 GB. Reports are kept in docs/precompiled; `--render` only rewrites the page
from the reports that are kept.
"""

import json
import pathlib
import subprocess
import sys

from tabulate import tabulate

from switch_tf.models.config import ModelConfig
from switch_tf.runs import gin_config
from tpu.precompile.report import report_text

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGE = DOCS / "tpu.md"
REPORTS = DOCS / "precompiled"
BEGIN, END = "<!-- begin: python -m tools.table_of_slices -->", "<!-- end -->"
# The layout whose report the page shows as an example.
EXAMPLE = "v3_32"
# The model and the slice of each layout, and the compiler's effort.
LAYOUTS = {
    "v3_32": ("switch_base_128", "v3-32", "full"),
    "v5e_32": ("switch_base_128", "v5litepod-32", "full"),
    "v4_64": ("switch_large_128", "v4-64", "full"),
    "v4_512": ("switch_xxl_128", "v4-512", "full"),
    "v5p_128": ("switch_xxl_128", "v5p-128", "full"),
    "v6e_256": ("switch_xxl_128", "v6e-256", "full"),
    "v3_2048": ("switch_c_2048", "v3-2048", "full"),
    "v4_1024": ("switch_c_2048", "v4-1024", "low"),
    "v4_512_switch_c": ("switch_c_2048", "v4-512", "low"),
    "v5p_256": ("switch_c_2048", "v5p-256", "low"),
    "v6e_256_switch_c": ("switch_c_2048", "v6e-256", "low"),
}
_HEADER = (
    "model",
    "layout",
    "slice",
    "devices",
    "mesh",
    "microbatches",
    "recomputed",
    "weights, slots",
    "needs",
    "of",
    "all-to-alls",
    "FLOPs",
    "step, at least",
    "effort",
    "minutes",
    "host",
)
_GIB = 2**30


def arguments(layout: str) -> list[str]:
    """Returns the arguments of `switch-tf tpu precompile` for a layout."""
    model, accelerator_type, effort = LAYOUTS[layout]
    return [
        f"--gin_file=gin/models/{model}.gin",
        "--gin_file=gin/runs/pretrain.gin",
        "--gin_file=gin/precision/selective.gin",
        f"--layout=gin/layouts/{layout}.gin",
        f"--topology={accelerator_type}",
        f"--effort={effort}",
    ]


def compile_for(layout: str) -> None:
    """Compiles the training step for a layout, which must fit, and keeps its report."""
    command = [sys.executable, "-m", "switch_tf.cli.main", "tpu", "precompile", *arguments(layout), "--json"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    (REPORTS / f"{layout}.json").write_text(printed)


def table() -> str:
    """Renders the table of all reports that are kept."""
    rows = []
    for layout, (model, accelerator_type, _) in LAYOUTS.items():
        report = json.loads((REPORTS / f"{layout}.json").read_text())
        gin_config.load([f"gin/models/{model}.gin"], [])
        rows.append(_row(layout, model, accelerator_type, report, ModelConfig().num_sparse_layers))
    return tabulate(rows, _HEADER, tablefmt="github", disable_numparse=True)


def _row(layout: str, model: str, accelerator_type: str, report: dict, num_sparse_layers: int) -> list[str]:
    memory, flops, compilation = report["bytes_per_device"], report["flops_per_device"], report["compilation"]
    all_to_alls = sum(row["number"] for row in report["collectives"] if row["kind"] == "all-to-all")
    minutes = (compilation["lowering_seconds"] + compilation["compiling_seconds"]) / 60
    host = max(compilation["lowering_host_bytes"], compilation["compiling_host_bytes"])
    return [
        f"`{model}`",
        f"`{layout}`",
        f"`{accelerator_type}`",
        str(report["num_devices"]),
        " ".join(f"{name} {size}" for name, size in report["mesh"].items()),
        str(report["num_microbatches"]),
        report["rematerialization"],
        f"{(memory['weights'] + memory['slots']) / _GIB:.2f} GiB",
        f"{memory['needed'] / _GIB:.2f} GiB",
        f"{memory['limit'] / _GIB:.2f} GiB",
        f"{all_to_alls / (num_sparse_layers * report['num_microbatches']):g}",
        f"{flops['compiled'] / flops['all_slots']:.2f}",
        f"{report['min_seconds']['step']:.2f} s",
        compilation["effort"],
        f"{minutes:.1f}",
        f"{host / _GIB:.1f} GiB",
    ]


def generated_sections() -> list[str]:
    """Returns the text between each pair of the page's markers: the example's report, and the table."""
    report = json.loads((REPORTS / f"{EXAMPLE}.json").read_text())
    return [f"```\n{report_text(report)}\n```", table()]


def written_sections(page: str) -> list[str]:
    """Returns the text between each pair of markers of a page."""
    return [section.split(END)[0].strip() for section in page.split(BEGIN)[1:]]


def main(*names: str) -> None:
    """Compiles for the named layouts, or for all of them, and rewrites the page."""
    REPORTS.mkdir(exist_ok=True)
    for layout in [] if names == ("--render",) else names or LAYOUTS:
        compile_for(layout)
    page, *rest = PAGE.read_text().split(BEGIN)
    for section, old in zip(generated_sections(), rest, strict=True):
        page += f"{BEGIN}\n{section}\n{END}{old.split(END, 1)[1]}"
    PAGE.write_text(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
