"""The list of bugs must fit the code, or `python -m tests.mutations` would prove nothing."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest

from tests.mutations import MUTANTS, ROOT, Mutant, mutate


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_every_bug_still_fits_its_file(mutant: Mutant) -> None:
    """What it replaces is there exactly once, and what comes out is another program, not a broken one."""
    text = (ROOT / "streamexit" / mutant.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutate(text, mutant))) != ast.dump(ast.parse(text))
    for test in mutant.tests:
        assert (ROOT / test.partition("::")[0]).is_file()


def test_no_bug_is_listed_twice() -> None:
    """Neither by its name nor by what it does."""
    assert len({mutant.what for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.original, mutant.mutated) for mutant in MUTANTS}) == len(
        MUTANTS
    )


@pytest.mark.parametrize("text", ["", "x = 1", "x = 12\nx = 12\n"])
def test_a_bug_that_fits_no_more_is_said(text: str) -> None:
    """Where the code was changed, the list has to follow."""
    mutant = replace(MUTANTS[0], original="x = 12", mutated="x = 13")
    with pytest.raises(ValueError, match="not once"):
        mutate(text, mutant)
    assert mutate("x = 12\n", mutant) == "x = 13\n"
