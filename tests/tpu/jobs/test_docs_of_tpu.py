"""docs/tpu.md agrees with the commands."""

import dataclasses
import itertools
import pathlib
import re
import shlex

import pytest

from switch_tf.cli import flags
from switch_tf.cli import main as command_line
from tests.support.fake_cloud import State
from tpu.jobs.spec import Job
from tpu.topologies import GENERATIONS, SLICES

TEXT = (pathlib.Path(__file__).parents[3] / "docs" / "tpu.md").read_text()
COMMANDS = [line.strip() for line in re.findall(r"^ *(switch-tf [^\n]+)$", TEXT.replace("\\\n", " "), re.MULTILINE)]


@pytest.fixture
def job_file(tmp_path, monkeypatch):
    """The page's job.yaml, in the current folder."""
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "job.yaml").write_text(re.sub("^   ", "", block, flags=re.MULTILINE))
    monkeypatch.chdir(tmp_path)


def test_there_are_commands():
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_commands_parse(command):
    _, words = flags.split_bindings(shlex.split(command)[1:])
    command_line.make_parser().parse_args(words)


def test_every_setting_is_in_the_table():
    rows = re.findall(r"^\| (`.*?) \|", TEXT.split("## Settings")[1].split("## Commands")[0], re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(Job))


def test_slices_and_images_are_those_of_the_table():
    for generation in GENERATIONS.values():
        names = [name for name, slice_ in SLICES.items() if slice_.generation == generation]
        assert f"`{names[0]}` to `{names[-1]}`" in TEXT
        assert f"`{generation.runtime}`" in TEXT


def test_the_job_on_the_page_passes_the_checks(job_file, capsys):
    command_line.main(["tpu", "submit", "--job=job.yaml", "--dry_run"])
    out = capsys.readouterr().out
    assert '"acceleratorType": "v3-32"' in out
    assert "STORE=gs://my-bucket/base/job/attempt-1\n" in out


def test_submit_prints_what_the_page_shows(job_file, zone, bucket, capsys):
    (bucket.parent / "my-bucket").mkdir()
    command_line.main(["tpu", "submit", "--job=job.yaml", f"--endpoint={zone.endpoint}"])
    (shown,) = re.findall(r"`submit` prints\n\n```\n(.*?)```", TEXT, re.DOTALL)
    assert capsys.readouterr().out == shown
    zone.set_state("base-1", State.ACTIVE)
    place = ["--project=my-project", "--zone=europe-west4-a", f"--endpoint={zone.endpoint}"]
    command_line.main(["tpu", "watch", "base", "--once", *place])
    assert "ACTIVE" in capsys.readouterr().out


def test_table_rows_have_equally_many_cells():
    for above, below in itertools.pairwise(TEXT.splitlines()):
        if above.startswith("|") and below.startswith("|"):
            assert above.count("|") == below.count("|"), below
