"""Do the tests notice? Bugs are put into copies of the package, one at a time: `python -m tests.mutations`.

Each copy has one bug of the list below; the named tests must fail on it. What is printed as SURVIVED is
a bug that nobody would have noticed. `python -m tests.mutations spool` tries those in one file only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]

AT_ONCE = 2
LIMIT_SECONDS = 180.0
"""For the tests of one copy; a bug that makes them run for ever is noticed by that."""

Verdict = Literal["caught", "SURVIVED", "broken"]
"""broken: pytest could not say, as when it found no tests; that proves nothing."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug.

    Attributes:
        what: In a few words.
        file: In the package.
        original: What stands there, exactly once.
        mutated: What stands there instead.
        tests: Files or tests; none may need a fixture of conftest.py, which takes long to import.
    """

    what: str
    file: str
    original: str
    mutated: str
    tests: tuple[str, ...]


THRESHOLDS, CONTROLLER = "scheduling/thresholds.py", "budget/controller.py"
LEDGER, WINDOW = "budget/ledger.py", "budget/score_window.py"
BATCHER, SPOOL, COPIES = "engine/batcher.py", "sinks/spool.py", "sinks/copies.py"
OF_THRESHOLDS = ("tests/scheduling/test_thresholds.py",)
OF_CONTROLLER = ("tests/budget/test_controller.py",)
OF_LEDGER = ("tests/budget/test_ledger.py",)
OF_WINDOW = ("tests/budget/test_score_window.py",)
OF_BATCHER = ("tests/engine/test_batcher.py",)
OF_SPOOL = ("tests/sinks/test_spool.py",)
OF_COPIES = ("tests/sinks/test_copies.py",)

MUTANTS = (
    Mutant(
        "those who left before are not counted",
        THRESHOLDS,
        "leaving = wanted[k] - (n - len(waiting))",
        "leaving = wanted[k]",
        OF_THRESHOLDS,
    ),
    Mutant(
        "NaN stays where all leave",
        THRESHOLDS,
        "(scores >= thresholds) | (thresholds == ALWAYS)",
        "scores >= thresholds",
        OF_THRESHOLDS,
    ),
    Mutant(
        "thresholds fall from row to row",
        THRESHOLDS,
        "floor = np.maximum(floor, solve_thresholds(scores, wanted))",
        "floor = solve_thresholds(scores, wanted)",
        OF_THRESHOLDS,
    ),
    Mutant(
        "other costs are not used",
        THRESHOLDS,
        "mean = sum(s * c for s, c in zip(shares, fractions",
        "mean = sum(s * c for s, c in zip(shares, self.fractions",
        OF_THRESHOLDS,
    ),
    Mutant(
        "a budget is not spent to the last",
        THRESHOLDS,
        "if cost <= budget else",
        "if cost < budget else",
        OF_THRESHOLDS,
    ),
    Mutant(
        "what a frame was charged is forgotten",
        CONTROLLER,
        "            passage.booked = cost\n",
        "",
        OF_CONTROLLER,
    ),
    Mutant(
        "the trim goes the wrong way",
        CONTROLLER,
        "self._trim - self._trim_rate * ",
        "self._trim + self._trim_rate * ",
        OF_CONTROLLER,
    ),
    Mutant(
        "shadow frames are taken whatever is owed",
        CONTROLLER,
        "debt < self._debt_limit\n                and ",
        "",
        OF_CONTROLLER,
    ),
    Mutant(
        "a withdrawn frame is charged twice",
        CONTROLLER,
        "            passage.booked = self.table.fractions[k]\n",
        "",
        OF_CONTROLLER,
    ),
    Mutant(
        "other strict terms keep the old ledger",
        CONTROLLER,
        "elif after != before:",
        "elif after.window != before.window:",
        OF_CONTROLLER,
    ),
    Mutant(
        "costs of a full window are never taken out",
        LEDGER,
        "before - self._excess[place] + excess",
        "before + excess",
        OF_LEDGER,
    ),
    Mutant(
        "a frame may reserve in another one's place",
        LEDGER,
        "self._last - seq >= self._window",
        "self._last - seq > self._window",
        OF_LEDGER,
    ),
    Mutant(
        "what was overspent under another budget is forgotten",
        LEDGER,
        "        new._sums[self._last % window] = carried\n",
        "",
        OF_LEDGER,
    ),
    Mutant(
        "what was spared under another budget is spent",
        LEDGER,
        "max(0.0, true)",
        "true",
        OF_LEDGER,
    ),
    Mutant(
        "another score than the oldest goes",
        WINDOW,
        "bisect_left(self._sorted, self._recent[self._next])",
        "bisect_left(self._sorted, score) - 1",
        OF_WINDOW,
    ),
    Mutant(
        "the ring is one too short",
        WINDOW,
        "(self._next + 1) % LENGTH",
        "(self._next + 1) % (LENGTH - 1)",
        OF_WINDOW,
    ),
    Mutant(
        "the first stage goes first",
        BATCHER,
        "range(len(self._queues) - 1, -1, -1)",
        "range(len(self._queues))",
        OF_BATCHER,
    ),
    Mutant(
        "urgency outlives its row",
        BATCHER,
        '        self.due = min(waiting, default=float("inf"))\n',
        "",
        OF_BATCHER,
    ),
    Mutant(
        "a stream keeps its turn",
        BATCHER,
        "self._lines[stream] = line  # to the end of the turn",
        "self._lines = {stream: line, **self._lines}",
        OF_BATCHER,
    ),
    Mutant(
        "ids are used again",
        SPOOL,
        "max(int(cursor.fetchone()[0]), self._last_id) + 1",
        "int(cursor.fetchone()[0]) + 1",
        OF_SPOOL,
    ),
    Mutant(
        "a removal is not committed",
        SPOOL,
        "            with database:\n                rows = [",
        "            if database:\n                rows = [",
        OF_SPOOL,
    ),
    Mutant(
        "losses are told again and again",
        SPOOL,
        "gone, self._gone = self._gone, []",
        "gone = self._gone",
        OF_SPOOL,
    ),
    Mutant(
        "what this run kept passes for earlier",
        SPOOL,
        "        if not self._opened_before:\n",
        "        if True:\n",
        OF_SPOOL,
    ),
    Mutant(
        "what was confirmed during a copy stays kept",
        COPIES,
        "        if one.over:\n            self._unremoved.add(row)",
        "        if one.over:\n            pass",
        OF_COPIES,
    ),
    Mutant(
        "what was confirmed during a removal stays kept",
        COPIES,
        "self._unremoved.difference_update(ids)",
        "self._unremoved.clear()",
        OF_COPIES,
    ),
    Mutant(
        "a read steps over what was left behind",
        COPIES,
        "if not rows or self._cursor != asked or not",
        "if not rows or not",
        OF_COPIES,
    ),
    Mutant(
        "the wrong end of the late ones goes back",
        COPIES,
        "one = self._late.pop()",
        "one = self._late.popleft()",
        OF_COPIES,
    ),
)


def mutate(text: str, mutant: Mutant) -> str:
    """The text of the mutant's file with the bug in it.

    Raises:
        ValueError: The file has changed: what the bug replaces is not there, or not once.
    """
    found = text.count(mutant.original)
    if found != 1:
        raise ValueError(
            f"{mutant.file}: {mutant.what}: what it replaces is there {found} times, not once"
        )
    return text.replace(mutant.original, mutant.mutated)


def copied(folder: Path, mutant: Mutant | None) -> Path:
    """A copy of the package and its tests, with the bug if there is to be one."""
    for part in ("streamexit", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    if mutant is not None:
        file = folder / "streamexit" / mutant.file
        file.write_text(mutate(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")
    return folder


def run_tests(folder: Path, tests: Iterable[str]) -> int:
    """Pytest's exit code in a copy; 1 when it takes too long."""
    python = [sys.executable, "-c"]
    check = "import streamexit, sys; sys.exit(not streamexit.__file__.startswith(sys.argv[1]))"
    options = ["-q", "-x", "--noconftest", "-p", "no:cacheprovider", "--hypothesis-profile=ci"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",  # copies follow one another faster than time stamps differ
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([*python, check, str(folder)], cwd=folder, env=environment, check=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return 1
    return done.returncode


def judge(mutant: Mutant) -> tuple[Verdict, float]:
    """Whether the tests notice, and the seconds that it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        code = run_tests(copied(Path(folder).resolve(), mutant), mutant.tests)
    verdicts: dict[int, Verdict] = {0: "SURVIVED", 1: "caught"}
    return verdicts.get(code, "broken"), time.monotonic() - began


def sound(mutants: Sequence[Mutant]) -> bool:
    """Whether the tests pass where there is no bug; else all would seem to be caught."""
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        return run_tests(copied(Path(folder).resolve(), None), tests) == 0


def main(text: str = "") -> int:
    """Try all bugs whose file has `text` in its name; 1 if one is not caught."""
    mutants = [mutant for mutant in MUTANTS if text in mutant.file]
    if not mutants or not sound(mutants):
        print("no such file" if not mutants else "the tests fail without any bug")
        return 1
    failed = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutant, (verdict, seconds) in zip(mutants, pool.map(judge, mutants), strict=True):
            failed += verdict != "caught"
            print(f"{verdict:8} {seconds:4.0f} s  {mutant.file}: {mutant.what}", flush=True)
    print(f"{len(mutants) - failed} of {len(mutants)} caught")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
