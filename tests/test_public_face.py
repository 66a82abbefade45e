"""What `import streamexit` gives."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import streamexit

FACE = Path(streamexit.__file__)


def test_the_names_are_these() -> None:
    """A name that comes or goes is a decision, and changes this list."""
    assert streamexit.__all__ == sorted(streamexit.__all__)
    assert set(streamexit.__all__) == {
        "Budget", "BudgetController", "Calibration", "CostTable", "Evidence", "ExitPolicy",
        "ExitRecord", "InputConverter", "InputError", "MultiExitNetwork", "OperationError", "Picture",
        "Pipeline", "Preprocessing", "Replayed", "Result", "Scorer", "Sink", "Source", "SourceError",
        "Stage", "StageOutput", "StreamExitError", "Terms", "ThresholdTable", "Watch", "fit_policy",
        "load_pipeline", "load_policy", "open_source", "replay", "save_pipeline", "save_policy",
    }  # fmt: skip


@pytest.mark.parametrize("name", streamexit.__all__)
def test_each_is_there_and_documented(name: str) -> None:
    """Its module has it, and says what it is."""
    thing = getattr(streamexit, name)
    assert inspect.getdoc(thing)
    assert thing.__module__.startswith("streamexit.")


def test_type_checkers_see_what_is_there() -> None:
    """The imports for them are those of the table."""
    typed = {
        (alias.name, node.module)
        for node in ast.walk(ast.parse(FACE.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("streamexit.")
        for alias in node.names
    }
    found = {
        (
            name,
            getattr(importlib.import_module(f"streamexit.{home}"), name) and f"streamexit.{home}",
        )
        for name, home in streamexit._HOMES.items()
    }
    assert typed == found
    assert FACE.with_name("py.typed").exists()


def test_no_submodule_hides_a_name() -> None:
    """Importing streamexit.x sets the attribute x of the package."""
    modules = {path.stem for path in FACE.parent.glob("*.py")}
    rooms = {path.parent.name for path in FACE.parent.glob("*/__init__.py")}
    assert not (modules | rooms) & set(streamexit.__all__)


def test_a_name_that_is_not_there() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="no attribute 'Reply'"):
        _ = streamexit.Reply
    assert {*streamexit.__all__, "__version__"} == set(dir(streamexit))
    assert str(streamexit.__version__).count(".") == 2


def test_importing_it_costs_nothing() -> None:
    """Libraries are imported when they are needed."""
    script = "import sys, streamexit; print([m for m in sys.modules if m in ('torch', 'numpy', 'cv2', 'av')])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
