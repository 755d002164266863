"""docs/tpu.md's table: what is kept of its compilations is of the gin files as they are, and fits."""

import collections
import json

import pytest

from switch_tf.cli.main import make_parser
from tools import table_of_slices
from tpu.precompile.plan import read_plan
from tpu.topologies import find_slice


def test_the_page_is_that_of_the_reports():
    assert table_of_slices.written_parts(table_of_slices.PAGE.read_text()) == table_of_slices.parts()


@pytest.mark.parametrize("layout", table_of_slices.LAYOUTS)
def test_a_report_is_of_the_layout_as_it_is(layout):
    report = json.loads((table_of_slices.REPORTS / f"{layout}.json").read_text())
    options = make_parser().parse_args(["tpu", "precompile", *table_of_slices.arguments(layout), "--json"])
    plan = read_plan([*options.gin_file, options.layout], [], [], options.step)
    slice_ = find_slice(options.topology)
    assert report["topology"] == slice_.topology_name and report["num_devices"] == slice_.num_devices
    assert (report["batch_size"], report["num_microbatches"]) == (plan.batch_size, plan.num_microbatches)
    assert report["mesh"] == dict(plan.layout.mesh) and report["compilation"]["effort"] == options.effort

    memory = report["bytes_per_device"]
    assert report["fits"] and memory["needed"] < memory["limit"]
    assert memory["given_up"] >= memory["weights"] + memory["slots"]
    exchanged = collections.Counter()
    for row in report["exchanges"]:
        exchanged[row["kind"]] += row["number"]
    # What goes through each sparse layer, there and back, twice where blocks are made again; and no expert's weights.
    assert report["rematerialization"] == plan.config.rematerialization
    is_made_again = plan.config.rematerialization == "blocks"
    exchanges_of_layer = 6 if is_made_again else 4
    assert 0 < exchanged["all-to-all"] <= exchanges_of_layer * plan.config.num_sparse_layers * plan.num_microbatches
    assert "all-gather" not in exchanged
    flops = report["flops_per_device"]
    ratio = flops["compiled"] / flops["of_slots"]
    assert 1.3 < ratio < 1.9 if is_made_again else ratio == pytest.approx(1, abs=0.15)
