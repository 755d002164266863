"""The page of runs: findings, speed-ups, what is missing or damaged, and that a browser draws it."""

import math
import re
import resource
import shutil
import subprocess

import pytest

from switch_tf.errors import SettingError
from switch_tf.report.comparison import plot_curves, plot_experts
from switch_tf.report.findings import findings_of
from switch_tf.report.run_records import read_run
from switch_tf.report.run_report import report_page, write_report
from switch_tf.report.speedups import group_runs, speed_up
from tests.support.fake_runs import fake_run


def test_a_collapse_is_found_where_it_begins(tmp_path):
    run = read_run(str(fake_run(tmp_path / "collapsed", collapse_at=400)))
    (finding,) = findings_of(run)
    assert (finding.layer, finding.rule, finding.until) == ("decoder/layer_0", "collapsed", None)
    assert 400 < finding.since <= 500
    page = report_page([run])
    assert re.search(r"decoder/layer_0: expert 0 gets 8\d % of the tokens", page)
    assert f"(since step {finding.since})" in page


def test_a_healthy_run_has_no_finding(tmp_path):
    run = read_run(str(fake_run(tmp_path / "healthy")))
    assert findings_of(run) == []
    assert "No router shows a fault." in report_page([run])


def test_a_run_of_few_steps_is_not_called_healthy(tmp_path):
    page = report_page([read_run(str(fake_run(tmp_path / "short", steps=60)))])
    assert "Too few steps have been recorded to judge the routers." in page and "No router shows a fault." not in page


def test_a_run_that_diverged_is_reported(tmp_path):
    folder = fake_run(tmp_path / "diverged")
    for name in ("metrics.csv", "eval.csv"):
        header, *rows = (folder / name).read_text().splitlines()
        place = header.split(",").index("neg_log_perplexity")
        rows = [
            ",".join("nan" if index == place else cell for index, cell in enumerate(row.split(","))) for row in rows
        ]
        (folder / name).write_text("\n".join([header, *rows]) + "\n")
    dense = read_run(str(fake_run(tmp_path / "dense", experts=0)))
    assert "diverged" in report_page([read_run(str(folder)), dense])
    assert "No loss that has been recorded is finite." in report_page([read_run(str(folder))])


def test_settings_of_several_lines_are_read_whole(tmp_path):
    runs = []
    for targets in (10, 12):
        folder = fake_run(tmp_path / str(targets))
        with (folder / "config.gin").open("a") as file:
            file.write(f"Experiment.task_feature_lengths = \\\n    {{'inputs': 32,\n     'targets': {targets}}}\n")
        runs.append(read_run(str(folder)))
    assert runs[0].bindings["Experiment.task_feature_lengths"] == "{'inputs': 32, 'targets': 10}"
    assert len(group_runs(runs)) == 2


def test_runs_are_grouped_by_their_settings_and_compared(tmp_path):
    """A curve that leads by 0.5 nats at the end reaches the baseline's last value where the formula says."""
    folders = [fake_run(tmp_path / f"dense-seed{seed}", experts=0, seed=seed) for seed in (0, 1)]
    folders += [fake_run(tmp_path / f"sparse-seed{seed}", seed=seed, lead=0.5) for seed in (0, 1)]
    groups = group_runs([read_run(str(folder)) for folder in folders])
    assert [(group.name, len(group.runs)) for group in groups] == [("dense", 2), ("sparse", 2)]
    dense, sparse = groups
    result = speed_up(sparse, dense)
    assert result.lead == pytest.approx(0.5)
    # Between the evaluations at steps 600 and 800 the curve is interpolated.
    at_600, target = (-6 * math.exp(-step / 300) - 2 for step in (600, 800))
    at_600, at_800 = at_600 + 0.375, target + 0.5
    reached = 600 + 200 * (target - at_600) / (at_800 - at_600)
    assert result.positions["steps"] == pytest.approx(reached, rel=1e-4)
    assert result.factors["steps"] == pytest.approx(800 / reached, rel=1e-4)
    assert result.factors["hours"] == pytest.approx(800 / reached, rel=1e-4)
    page = report_page([run for group in groups for run in group.runs])
    assert "Speed-up over dense" in page and f"({800 / reached:.2f}x)" in page
    assert "sparse (2 seeds)" in page


def test_a_baseline_of_another_name_is_refused(tmp_path):
    run = read_run(str(fake_run(tmp_path / "mine")))
    with pytest.raises(SettingError, match="--baseline=yours is none of the runs: choose one of mine"):
        report_page([run], "yours")


def test_what_is_missing_or_cut_off_is_left_out(tmp_path):
    folder = fake_run(tmp_path / "cut", steps=200)
    for name in ("metrics.csv", "experts.csv"):
        text = (folder / name).read_text()
        (folder / name).write_text(text[: len(text) * 2 // 3])
    (folder / "eval.csv").unlink()
    run = read_run(str(folder))
    assert 120 < run.last_step < 140
    assert "no evaluation on held-out data has been recorded yet" in report_page([run])
    (folder / "metrics.csv").write_text("step,neg_log")
    (folder / "experts.csv").unlink()
    assert "No step has been recorded yet." in report_page([read_run(str(folder))])


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"holds no config\.gin"):
        read_run(str(tmp_path))


_CHECK = """<script>addEventListener("load", () => {
const drawn = [...document.querySelectorAll("svg.chart")].map(svg => {
  const box = svg.getBoundingClientRect(), marks = svg.querySelectorAll(".line, .dot, image").length;
  return box.width > 100 && box.height > 50 && marks > 0 && !svg.outerHTML.includes("NaN");
});
document.body.dataset.charts = drawn.length + " charts, " + drawn.filter(Boolean).length + " drawn, "
  + (document.documentElement.scrollWidth - innerWidth) + " too wide";
})</script>"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_every_chart(tmp_path, width):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    folders = [fake_run(tmp_path / "dense", experts=0), fake_run(tmp_path / "sparse", lead=0.3)]
    page = report_page([read_run(str(folder)) for folder in folders])
    path = tmp_path / "report.html"
    path.write_text(page + _CHECK)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},2000"]
    result = subprocess.run(
        [chromium, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{path}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    count = page.count('<svg class="chart"')
    assert count == 4 + 10 + 2
    found = re.search(r'data-charts="(\d+) charts, (\d+) drawn, (-?\d+) too wide"', result.stdout)
    assert found is not None, result.stderr
    assert found.group(1) == found.group(2) == str(count)
    assert int(found.group(3)) <= 0
    assert "CONSOLE" not in result.stderr


@pytest.mark.slow
def test_a_long_run_of_many_experts_takes_two_gigabytes_of_memory_at_most(tmp_path):
    """100,000 steps of 24 sparse layers with 128 experts: more than a gigabyte of CSV files."""
    folder = fake_run(tmp_path / "long", experts=128, layers=12, steps=2000, log_period=10, eval_period=500)
    for name, times in (("metrics.csv", 50), ("experts.csv", 50)):
        header, *rows = (folder / name).read_text().splitlines(keepends=True)
        with open(folder / name, "w") as file:
            file.write(header)
            for copy in range(times):
                for row in rows:
                    step, rest = row.split(",", 1)
                    file.write(f"{int(step) + 2000 * copy},{rest}")
    assert sum((folder / name).stat().st_size for name in ("metrics.csv", "experts.csv")) > 1e9
    run = read_run(str(folder))
    path = write_report([run], str(tmp_path))
    plot_curves([run], -6.0, str(tmp_path / "loss.png"))
    assert plot_experts(run, str(tmp_path / "experts.png"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20
    with open(path) as file:
        assert len(file.read()) < 6 * 2**20
