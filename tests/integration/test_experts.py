"""`switch-tf experts` names what each expert of a trained run knows."""

import re

import pytest

from tests.support import commands
from tests.support.four_kinds import KINDS

pytestmark = pytest.mark.slow


def words_of_experts(table: str) -> list[set[str]]:
    """Returns the words that the table lists for each expert of each layer."""
    rows = re.findall(r"^ +\d+ +[\d.]+ %  (.*)$", table, re.MULTILINE)
    return [set(re.findall(r"▁([a-z]+) \d+ \(", row)) for row in rows]


def test_experts_know_the_kinds_of_documents(tmp_path, capsys):
    """Documents of four kinds with words of their own: for each kind there is an expert of its words alone."""
    commands.run("train", "--gin_file=tests/support/four_kinds.gin", f'--gin.MODEL_DIR="{tmp_path}"')
    table = commands.call(capsys, "experts", f"--model_dir={tmp_path}")
    experts = words_of_experts(table)
    assert len(experts) == 4 * 6
    for kind, words in KINDS.items():
        assert any(len(known) >= 4 and known <= set(words) for known in experts), f"{kind}: {table}"
    page = (tmp_path / "experts.html").read_text()
    assert "Which expert follows which" in page and page.count("<h2>") == 6
