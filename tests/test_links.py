"""Links: each leads to a file that is there, and to a heading in it, in the repository and on the site."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
PAGES = sorted(
    file.relative_to(ROOT).as_posix()
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "samples/*.md",
        "deploy/*.md",
        "pipelines/*/README.md",
    )
    for file in ROOT.glob(pattern)
)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and the site make of a page's headings."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


def links(text: str) -> list[str]:
    """Targets of a page's links that lead to no other host."""
    found = LINK.findall(
        CODE.sub(lambda code: code[0] if "](" in code[0] else "", FENCE.sub("", text))
    )
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    return [target for target in links(text) if not leads_somewhere(page, target)]


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether a link's file is there, and has the heading that is asked for."""
    path, _, anchor = target.partition("#")
    aim = page.parent / path if path else page
    if not aim.exists():
        return False
    return not anchor or (aim.is_file() and anchor in anchors(aim.read_text(encoding="utf-8")))


def navigation(entries: list[dict[str, Any]]) -> list[str]:
    """The pages that the site's navigation names, in its order."""
    found: list[str] = []
    for entry in entries:
        for inside in entry.values():
            found += navigation(inside) if isinstance(inside, list) else [inside]
    return found


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as the site is built of them."""
    folder = tmp_path_factory.mktemp("site") / "pages"
    command = [sys.executable, str(ROOT / "docs" / "site_pages.py"), str(folder)]
    subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_repository_lead_somewhere(page: str) -> None:
    """Read where they are, the files link to files and headings that exist."""
    assert broken(ROOT / page) == []


def test_links_of_the_site_lead_somewhere(gathered: Path) -> None:
    """Gathered for the site, no page links to a file that the site does not have."""
    pages = sorted(gathered.rglob("*.md"))
    assert len(pages) > 20
    assert {page.name: broken(page) for page in pages if broken(page)} == {}
    leaving = [
        target
        for page in pages
        for target in links(page.read_text(encoding="utf-8"))
        if not (page.parent / target.partition("#")[0]).resolve().is_relative_to(gathered)
    ]
    assert leaving == []


def test_navigation_has_every_page_once(gathered: Path) -> None:
    """What the navigation names is there, and no page under docs/ is left out of it."""
    with (ROOT / "zensical.toml").open("rb") as file:
        named = navigation(tomllib.load(file)["project"]["nav"])
    assert len(named) == len(set(named))
    assert [page for page in named if not (gathered / page).is_file()] == []
    own = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    assert own <= set(named)


def test_files_that_the_site_lacks_become_words(gathered: Path) -> None:
    """A link to a file outside docs/ that is no page is told as its path."""
    text = (gathered / "operations.md").read_text(encoding="utf-8")
    assert "an example (`deploy/mosquitto/acl`)" in text
    assert "[deploy/](repository/deploy/README.md)" in text


@pytest.mark.parametrize(
    "link", ["[a](gone.md)", "![a](gone.png)", "[a](other.md#gone)", "[a](#gone)", "[a](..#gone)"]
)
def test_broken_links_are_found(tmp_path: Path, link: str) -> None:
    """A missing file, a missing heading, and a heading of a folder are told apart from what is there."""
    (tmp_path / "other.md").write_text("# Here\n\n## The `first`, part\n")
    page = tmp_path / "page.md"
    good = "# Top\n\n[b](other.md#the-first-part) [c](#top) [d](..) [e](https://example.org/#x)\n"
    page.write_text(f"{good}\n```\n[f](shown.md)\n```\n`[g]` {link}\n")
    assert broken(page) == [link.partition("(")[2][:-1]]
