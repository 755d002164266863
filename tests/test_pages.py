"""The pages for people who use or change the project: their links lead somewhere, and their commands can be given."""

import pathlib
import re
import shlex

import pytest

from switch_tf.cli import flags
from switch_tf.cli import main as command_line
from switch_tf.runs import gin_config, loop  # noqa: F401 (registers what gin files bind)
from tests.support.shell_blocks import commands_of

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def names_of(pages: list[pathlib.Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def prose(page: pathlib.Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: words in lower case, joined by hyphens."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", names_of(PAGES))
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_index_leads_to_every_page():
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


def test_the_site_has_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    assert set(re.findall(r"- (\w+\.md)$", navigation, re.MULTILINE)) == {
        *(page.name for page in (ROOT / "docs").glob("*.md")),
        *("contributing.md", "changelog.md"),
    }


def test_the_architecture_describes_every_package():
    packages = {path.parent for folder in ("switch_tf", "tasks", "tpu") for path in (ROOT / folder).rglob("*.py")}
    names = {str(package.relative_to(ROOT)) for package in packages} - {"switch_tf", "tpu"}
    described = set(re.findall(r"^\| `([\w/]+)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE))
    assert described == names


@pytest.mark.parametrize(
    "command", [command for page in ("README.md", "docs/data.md", "docs/meshes.md") for command in commands_of(page)]
)
def test_commands_can_be_given(command):
    bindings, others = flags.split_bindings(shlex.split(command)[1:])
    options = command_line.make_parser().parse_args(others)
    if options.command != "tpu" and getattr(options, "gin_file", None):
        gin_config.load(options.gin_file, bindings)
        if options.command != "describe":
            gin_config.check_required(but=("MODEL_DIR",))
