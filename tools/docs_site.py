"""What `make docs` adds to docs/: a page for each module, CONTRIBUTING.md and CHANGELOG.md, and links to them.

mkdocs calls the functions whose names begin with `on_` (its hooks). Links between files of the repository become links
between pages; the site has no page for a gin file or a script, so that only the text of such a link stays.
"""

import os
import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import log

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("switch_tf", "tasks", "tpu")
# Pages that are files at the top of the repository.
TOP_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<!\!)\[(?P<text>[^\]]+)\]\((?P<target>(?![a-z]+:|#)[^)#\s]+)(?P<anchor>#[^)]*)?\)")


def modules() -> list[pathlib.Path]:
    """Returns the modules that get a page, relative to the repository."""
    found = [path.relative_to(ROOT) for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return [path for path in found if path.name != "__init__.py"]


def page_of(path: str) -> str | None:
    """Returns the page that shows a file of the repository; None where none does."""
    if path in TOP_PAGES:
        return TOP_PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".py") and pathlib.Path(path) in modules():
        return f"api/{path.removesuffix('.py')}.md"
    return None


def file_of(page: str) -> str:
    """Returns the file of the repository that a page shows."""
    for file, shown in TOP_PAGES.items():
        if shown == page:
            return file
    return f"docs/{page}"


def resolve_links(markdown: str, page: str) -> str:
    """Rewrites a page's links to files of the repository as links to pages, or as plain text where there is no page."""
    file = file_of(page)

    def replace(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), link["target"]))
        if not (ROOT / target).exists():
            log.warning(f"{file} links to {link['target']}, which does not exist.")
        shown = page_of(target)
        if shown is None:
            return link["text"]
        return f"[{link['text']}]({os.path.relpath(shown, posixpath.dirname(page) or '.')}{link['anchor'] or ''})"

    return LINK.sub(replace, markdown)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the API to the navigation, a section for each package."""
    sections: dict[str, list[dict[str, str]]] = {}
    for path in modules():
        package = ".".join(path.parent.parts)
        sections.setdefault(package, []).append({path.stem: f"api/{path.with_suffix('.md')}"})
    api = [{package: pages} for package, pages in sorted(sections.items())]
    config.nav = [*(config.nav or []), {"API": api}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for path in modules():
        name = ".".join(path.with_suffix("").parts)
        page = f"# `{name}`\n\n::: {name}\n"
        files.append(File.generated(config, f"api/{path.with_suffix('.md')}", content=page))
    for file, page in TOP_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Resolves the links of a page before mkdocs checks them."""
    return markdown if page.file.src_uri.startswith("api/") else resolve_links(markdown, page.file.src_uri)
