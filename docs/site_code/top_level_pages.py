"""The changelog and the guide for contributors, which the top level of a repository holds, as pages of the site."""

from pathlib import Path
from typing import Any

_TOP_LEVEL = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page; mkdocs calls this for each.

    Args:
        markdown: What the file in docs/ holds.
        page: Its file tells which page it is.
    """
    name = _TOP_LEVEL.get(page.file.src_uri)
    if name is None:
        return markdown
    text = (Path(__file__).parents[2] / name).read_text()
    return text.replace("](docs/results)", "](results/index.md)").replace("](docs/", "](")
