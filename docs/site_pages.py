"""Gathers the pages of the documentation site: `python docs/site_pages.py out/pages`, before `zensical build`.

The files under docs/ are written to be read where they are, so their links may lead to files beside docs/,
which a site does not have. A Markdown file that is linked comes along, under `repository/`; a link to any
other file outside docs/ becomes its path, in words.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
LINK = re.compile(r"(?P<mark>!?)\[(?P<label>[^\]]*)\]\((?P<target>[^)\s]+)\)")
COMMENT = re.compile(r"^<!--.*-->$", re.MULTILINE)
FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)


def page_of(path: str) -> str | None:
    """Where a file of the repository is on the site, if it is there.

    Args:
        path: Relative to the root of the repository.
    """
    if path == "README.md":
        return "index.md"
    if (ROOT / path / "README.md").is_file():
        path = f"{path}/README.md"
    if path.startswith(f"{DOCS}/") and (ROOT / path).is_file() and not path.endswith(".py"):
        return path.removeprefix(f"{DOCS}/")
    return f"repository/{path}" if path.endswith(".md") and (ROOT / path).is_file() else None


class Site:
    """The pages, written one after the other; those that they lead to follow.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: list[str] = []
        self._seen: set[str] = set()

    def write(self) -> None:
        """All that is under docs/, and what it leads to."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for file in sorted((ROOT / DOCS).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                self._want(file.relative_to(ROOT).as_posix())
        while self._waiting:
            self._add(self._waiting.pop())

    def _want(self, path: str) -> None:
        if path not in self._seen and page_of(path):
            self._seen.add(path)
            self._waiting.append(path)

    def _add(self, path: str) -> None:
        page = page_of(path)
        assert page is not None
        file = self.folder / page
        file.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".md"):
            file.write_text(self._rewritten(path, page), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / path, file)

    def _rewritten(self, path: str, page: str) -> str:
        """The text of a page with links that hold on the site."""

        def link(match: re.Match[str]) -> str:
            return self._link(match, path, page)

        text = (ROOT / path).read_text(encoding="utf-8")
        pieces = FENCE.split(text)  # every other one is a block of code
        pieces[::2] = [LINK.sub(link, COMMENT.sub("", piece)) for piece in pieces[::2]]
        return "".join(pieces)

    def _link(self, match: re.Match[str], path: str, page: str) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or ":" in target:
            return match[0]
        aim = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        there = page_of(aim)
        if there is None:
            label = match["label"].strip("`")
            return f"`{label}`" if label.strip("/") == aim else f"{match['label']} (`{aim}`)"
        self._want(aim if (ROOT / aim).is_file() else f"{aim}/README.md")
        there = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{match['mark']}[{match['label']}]({there}{'#' if anchor else ''}{anchor})"


if __name__ == "__main__":
    Site(Path(sys.argv[1])).write()
