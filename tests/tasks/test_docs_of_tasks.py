"""docs/tasks.md: its tables are what is registered, its example works."""

import re

import pytest
import seqio
import t5.data.glue_utils

from tasks import c4, multilingual, vocabularies
from tasks.glue import unversioned
from tasks.tfds_source import data_set_of
from tests.support import tiny_tfds
from tools import tables_of_tasks

PAGE = tables_of_tasks.PAGE.read_text()
TABLES = PAGE.split(tables_of_tasks.BEGIN)[1].split(tables_of_tasks.END)[0].strip()
LISTED = re.findall(r"^\| `(\w[\w.-]*)` \|", TABLES.split("### Mixtures")[0], re.MULTILINE)


def test_every_task_is_listed():
    """Those that other tests register are none of the package's."""
    others = ("tiny_", "empty_", "cached_", "my_", "test_", "four_kinds", "long_or_short")
    ours = {name for name in tables_of_tasks.own_names() if not name.startswith(others)}
    assert {*LISTED, *multilingual.TASKS.values()} == ours
    assert "| `mc4.<code>` |" in TABLES
    assert all(f"`{code}` {pages:,}" in TABLES for code, pages in multilingual.PAGES.items())


@pytest.mark.usefixtures("tiny_data")
def test_tables_are_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabularies, "_selected_file", None)
    # Another test's, in the same process.
    monkeypatch.delitem(seqio.MixtureRegistry._REGISTRY, "rule_glue", raising=False)
    tables_of_tasks.write_examples(str(tmp_path))
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
    assert tables_of_tasks.tables([*LISTED, *multilingual.TASKS.values()]) == TABLES, (
        "run `python -m tools.tables_of_tasks`"
    )


def test_every_data_set_has_a_size_and_an_example():
    for name in LISTED:
        task = seqio.TaskRegistry.get(name)
        data_set = data_set_of(task)
        if data_set is not None:
            assert data_set in {*tiny_tfds.DATA_SETS, c4.TFDS_NAME, multilingual.TFDS_NAME}
            assert tables_of_tasks.sizes_of(task)


def test_sizes_are_those_that_t5_mixes_by():
    """Where they are: T5 counts each right answer of ReCoRD, the true examples of WSC, and the QQP of GLUE 1.0."""
    weights = t5.data.glue_utils.get_glue_weight_mapping() | t5.data.glue_utils.get_super_glue_weight_mapping()
    compared = 0
    for name, weight in weights.items():
        task = seqio.TaskRegistry.get(unversioned(name))
        if weight and not name.startswith(("super_glue_record", "super_glue_wsc", "glue_qqp")):
            assert tables_of_tasks.SIZES[data_set_of(task).split(":")[0]]["train"] == weight, name
            compared += 1
    assert compared == 14


@pytest.mark.parametrize(
    ("taken", "expected"), [("train", 10), ("train[:7]", 7), ("train[7:]", 3), ("train+validation", 14)]
)
def test_sizes_of_slices(taken, expected):
    assert tables_of_tasks.size(taken, {"train": 10, "validation": 4}) == expected


def test_a_task_of_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "train.tsv").write_text("A fine film\tgood\n")
    (tmp_path / "reviews" / "held-out.tsv").write_text("Too long\tbad\n")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    try:
        exec(code, {})
        assert tiny_tfds.written(seqio.TaskRegistry.get("my_reviews"), "train") == [("review: A fine film", "good")]
    finally:
        seqio.TaskRegistry.remove("my_reviews")
