"""What the pages of the documentation show to a reader: commands, and blocks of other languages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = (
    "README.md", "CONTRIBUTING.md", "docs/**/*.md",
    "samples/README.md", "deploy/README.md", "pipelines/*/README.md",
)  # fmt: skip
"""A page that is added under one of these is read from then on."""

PROGRAMS = re.compile(
    r"(([A-Z_]+=\S+ )*(sudo )?(\.venv/bin/)?"
    r"(streamexit|python3?|uv|make|sh|docker|systemctl|systemd-run|journalctl|apt|apt-get|pip|curl|ffmpeg"
    r"|mediamtx|telegraf|mosquitto_sub|mosquitto_pub)\s|cd\s)"
)
"""What a span of code begins with, and a line of a block without a language, if it is a command."""

_FENCE = re.compile(r"\s*(?P<fence>`{3,})\s*(?P<language>\w*)")
_SPAN = re.compile(r"(`+)(?P<code>[^`].*?)(?<!`)\1(?!`)", re.DOTALL)
_HEREDOC = re.compile(r"<<-?\s*'?(?P<end>\w+)'?")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    """Of the fence."""
    language: str
    text: str
    """Without the indentation of the fence."""

    @property
    def place(self) -> str:
        """For messages and names of tests."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Shown:
    """A command, and where it is shown."""

    text: str
    """On one line, unless it has a line break within quotes."""
    pages: tuple[str, ...]


def pages() -> list[str]:
    """All pages, by their path in the repository."""
    found = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    return sorted(str(path.relative_to(ROOT)) for path in found)


def blocks(page: str, text: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    opened: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, lines = (number, fence["language"], fence["fence"]), []
        elif opened is not None and line.strip() == opened[2]:
            # the closing fence is as far in as the opening one
            indent = len(line) - len(line.lstrip())
            yield Block(page, opened[0], opened[1], "".join(f"{one[indent:]}\n" for one in lines))
            opened = None
        else:
            lines.append(line)


def spans(text: str) -> Iterator[str]:
    """The inline code of a page, each on one line."""
    outside, inside = [], False
    for line in text.splitlines():
        fence = _FENCE.match(line) is not None
        if not inside and not fence:
            outside.append(line)
        inside ^= fence
    for paragraph in re.split(r"\n\s*\n", "\n".join(outside)):
        for match in _SPAN.finditer(paragraph):
            yield " ".join(match["code"].split())


def without_comment(line: str) -> str:
    """A line of shell up to its comment."""
    quote = ""
    for i, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (i == 0 or line[i - 1].isspace()):
            return line[:i].rstrip()
    return line.rstrip()


def _open_quote(text: str) -> bool:
    quote = ""
    for letter in text:
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
    return bool(quote)


def _unfinished(command: str) -> bool:
    heredoc = _HEREDOC.search(command)
    if heredoc:
        return not command.endswith(f"\n{heredoc['end']}")
    return _open_quote(command)


def script_commands(script: str) -> Iterator[str]:
    """The commands of a shell script, joined over backslashes, open quotes and here-documents."""
    command = ""
    for line in script.splitlines():
        started = command != ""
        if not (started and _unfinished(command)):
            line = without_comment(line)
        if line.endswith("\\"):
            command += line[:-1].rstrip() + " "
            continue
        joined = "\n" if started and _unfinished(command) else ""
        command += joined + (line.strip() if started and not joined else line)
        if not _unfinished(command):
            if command.strip():
                yield command.strip()
            command = ""
    if command.strip():
        yield command.strip()


def page_commands(page: str) -> Iterator[str]:
    """Every command on a page: those of its shell blocks, and code in its sentences that is one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in blocks(page, text):
        if block.language == "sh":
            yield from script_commands(block.text)
    yield from (span for span in spans(text) if PROGRAMS.match(span))


def all_commands() -> list[Shown]:
    """Every command of every page, once each."""
    found: dict[str, list[str]] = {}
    for page in pages():
        for command in page_commands(page):
            known = found.setdefault(command, [])
            if page not in known:
                known.append(page)
    return [Shown(command, tuple(where)) for command, where in found.items()]


def all_blocks(languages: Iterable[str]) -> list[Block]:
    """Every block of these languages, of every page."""
    wanted = set(languages)
    return [
        block
        for page in pages()
        for block in blocks(page, (ROOT / page).read_text(encoding="utf-8"))
        if block.language in wanted
    ]


def repository_file(path: Path | str) -> bool:
    """Whether a path is one of a file or folder of the repository."""
    return (ROOT / path).exists()
