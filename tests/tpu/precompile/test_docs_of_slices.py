"""docs/tpu.md's table: the reports that are kept belong to the gin files as they are now, and fit."""

import collections
import json

import pytest

from switch_tf.cli.main import make_parser
from tools import table_of_slices
from tpu.precompile.plan import read_plan
from tpu.topologies import find_slice


def test_the_page_shows_the_reports():
    page = table_of_slices.PAGE.read_text()
    assert table_of_slices.written_sections(page) == table_of_slices.generated_sections()


@pytest.mark.parametrize("layout", table_of_slices.LAYOUTS)
def test_a_report_belongs_to_the_layout_as_it_is_now(layout):
    report = json.loads((table_of_slices.REPORTS / f"{layout}.json").read_text())
    options = make_parser().parse_args(["tpu", "precompile", *table_of_slices.arguments(layout), "--json"])
    plan = read_plan([*options.gin_file, options.layout], [], [], options.step)
    slice_ = find_slice(options.topology)
    assert report["topology"] == slice_.topology_name and report["num_devices"] == slice_.num_devices
    assert (report["batch_size"], report["num_microbatches"]) == (plan.batch_size, plan.num_microbatches)
    assert report["mesh"] == dict(plan.layout.mesh) and report["compilation"]["effort"] == options.effort

    memory = report["bytes_per_device"]
    assert report["fits"] and memory["needed"] < memory["limit"]
    assert memory["aliased"] >= memory["weights"] + memory["slots"]
    counts: collections.Counter[str] = collections.Counter()
    for row in report["collectives"]:
        counts[row["kind"]] += row["number"]
    # Dispatch and combine in both passes, and again where blocks are recomputed; experts' weights are never gathered.
    assert report["rematerialization"] == plan.config.rematerialization
    is_recomputed = plan.config.rematerialization == "blocks"
    per_layer = 6 if is_recomputed else 4
    assert 0 < counts["all-to-all"] <= per_layer * plan.config.num_sparse_layers * plan.num_microbatches
    assert "all-gather" not in counts
    flops = report["flops_per_device"]
    ratio = flops["compiled"] / flops["all_slots"]
    assert 1.3 < ratio < 1.55 if is_recomputed else 0.99 < ratio < 1.05
