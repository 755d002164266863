"""What the pages tell a reader to type."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def blocks_of(page: str, language: str) -> list[str]:
    """Returns a page's blocks of code in a language.

    Args:
      page: its path in the repository.
      language: "sh" or "python".
    """
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands_of(page: str) -> list[str]:
    """Returns the `switch-tf` lines of a page's shell blocks; what a backslash breaks is one line."""
    lines = "".join(blocks_of(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("switch-tf ")]
