"""The figures of a small made-up package are those that counting by hand gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.house import report

FILES = {
    "streamexit/__init__.py": '"""The face."""\n',
    "streamexit/low.py": '''"""Low."""

from streamexit.high import top  # upward


def one(a: int, *rest: int, b: int = 0) -> int:
    """Says one."""
    # a comment
    return a


class Thing:
    """A thing."""

    size: int = 0
    """Of it."""

    def quiet(self) -> None:
        def inner(x):
            return x

        inner(top)
''',
    "streamexit/high/__init__.py": '"""High."""\n',
    "streamexit/high/top.py": '''"""Top."""

from streamexit import low
from streamexit.high import side


@decorated
def _two(
    a: int,
    b,
) -> int:
    if a:

        class Hidden:
            def three(cls) -> int:
                return low.one(side)

    return 1
''',
    "streamexit/high/side.py": '''"""Side."""

if False:
    import streamexit.high.top
''',
    "tests/test_architecture.py": '''"""Guard."""
FLOORS = {
    "low": 0,
    "high": 1,
}
''',
    "tests/deep/test_more.py": '"""More."""\n' * 23,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package of five files and its tests."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_figures_are_those_counted_by_hand(root: Path) -> None:
    """Each row says what a person counts, and each fault is named."""
    assert list(report(root)) == [
        "|  | streamexit | wanted |",
        "| --- | --- | --- |",
        "| modules | 3 |  |",
        "| source lines, code / all | 23 / 46 |  |",
        "| median / largest module (lines) | 18 / 22 (low.py) | 120 / 300 |",
        "| median / p90 function (lines) | 4 / 9 | 7 / 25 |",
        "| the same without docstrings | 3 / 9 |  |",
        "| functions over 25 lines without docstring | 0 |  |",
        "| functions with types | 60% | 100% |",
        "| public with docstrings | 66.6% | 100% |",
        "| test lines per source line | 0.61 | about 1 |",
        "| import circles / upward imports | 1 / 1 | 0 / 0 |",
        "circle: streamexit.high.side, streamexit.high.top, streamexit.low",
        "upward: streamexit.low imports streamexit.high.top",
        "without types: _two (high/top.py:8)",
        "without types: Thing.quiet.<locals>.inner (low.py:19)",
    ]


def test_the_longest_are_listed(root: Path) -> None:
    """Functions without their docstrings, modules with everything, the longest first."""
    body = "\n".join("    a += 1" for _ in range(25))
    for name, more in (("low", "    a += 1\n"), ("high/side", "")):
        with (root / "streamexit" / f"{name}.py").open("a", encoding="utf-8") as file:
            file.write(f'def long(a):\n    """Says\n    two lines."""\n{body}\n{more}')
    lines = list(report(root, worst=2))
    assert "| functions over 25 lines without docstring | 2 |  |" in lines
    assert lines[-6:] == [
        "\nLongest functions, lines without docstring / with it:",
        "- 27 / 29 long (low.py:23)",
        "- 26 / 28 long (high/side.py:5)",
        "\nLongest modules, lines of code / all:",
        "- 36 / 51 low.py",
        "- 28 / 32 high/side.py",
    ]
