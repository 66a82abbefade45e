"""The house: imports go down, no circles, asyncio and configuration where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "streamexit"

FLOORS = {
    "errors": 0,
    "redact": 0,
    "documents": 1,
    "remedies": 0,
    "plugins": 1,
    "metrics": 1,
    "prediction": 1,
    "schedule": 0,
    "durations": 0,
    "health": 0,
    "cache": 0,
    "preprocessing": 1,
    "frame": 2,
    "tasks": 2,
    "exits": 3,
    "queues": 4,
    "models": 4,
    "scheduling": 4,
    "drawing": 4,
    "wire": 4,
    "config": 5,
    "backends": 5,
    "sources": 5,
    "sinks": 5,
    "control": 5,
    "budget": 5,
    "training": 5,
    "engine": 6,
    "calibration": 6,
    "planning": 6,
    "recordings": 6,
    "replay_report": 6,
    "attached": 7,
    "outlets": 7,
    "testing": 7,
    "pictures": 8,
    "governor": 8,
    "playback": 8,
    "roster": 9,
    "reporter": 10,
    "reloading": 11,
    "operations": 12,
    "http": 13,
    "runtime": 14,
    "cli": 15,
    "__main__": 16,
}
"""Room -> floor, as in docs/architecture.md. An import goes to a lower floor or stays in its room."""

LOOPS = (
    "sinks",
    "control",
    "http",
    "pictures",
    "roster",
    "reporter",
    "reloading",
    "operations",
    "runtime",
    "cli",
)
"""Rooms that may know the event loop."""

CONFIGURED = (
    "config",
    "planning",
    "attached",
    "outlets",
    "governor",
    "roster",
    "reloading",
    "operations",
    "runtime",
    "cli",
)
"""Rooms that may know the configuration."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: Path) -> str:
    """The top-level module or sub-package that a file belongs to."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(module: Path) -> str:
    """streamexit.room.module; of a room's __init__ the room."""
    parts = ("streamexit", *module.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


NAMES = {dotted(module) for module in MODULES}


def imports(module: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in NAMES else node.module for name in inside}
    return names


def inner(module: Path) -> set[str]:
    """Those of our own."""
    return {name for name in imports(module) if name.split(".")[0] == "streamexit"}


def test_there_are_modules_to_check() -> None:
    """The checks below look at the real package."""
    assert len(MODULES) > 40


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(module: Path) -> None:
    """No file imports from its own floor's other rooms, or from above; the face is above all."""
    if room(module) == "__init__":
        return
    assert "streamexit" not in imports(module), "the face is for others"
    for name in inner(module):
        other = name.split(".")[1]
        assert other == room(module) or FLOORS[other] < FLOORS[room(module)], name


def test_rooms_have_no_circles() -> None:
    """Inside a room, too, files do not import each other in a circle."""
    graph = {dotted(module): inner(module) for module in MODULES if room(module) != "__init__"}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done:
            return
        for other in graph.get(name, set()):
            visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_asyncio_and_configuration_stay_in_their_places(module: Path) -> None:
    """The event loop is known to runtime, sinks and cli; the configuration to the top only."""
    if room(module) not in LOOPS:
        assert "asyncio" not in imports(module)
    if room(module) not in CONFIGURED:
        assert not any(name.startswith("streamexit.config") for name in imports(module))


@pytest.mark.parametrize("name", ["aiomqtt", "amqtt.broker"])
def test_mqtt_library_is_known_to_one_file(name: str) -> None:
    """Whoever wants to change the MQTT library changes one file."""
    assert len([m for m in MODULES if name in imports(m)]) == 1


def test_running_node_never_loads_training_nor_what_takes_seconds(cifar_pipeline: Path) -> None:
    """Neither what only makes networks, nor torchvision and TorchDynamo where no network is theirs."""
    script = (
        "import sys, streamexit.runtime, streamexit.playback\n"
        "from streamexit.models.pipeline import load_pipeline\n"
        "load_pipeline(__import__('pathlib').Path(sys.argv[1]))\n"
        "slow = ('streamexit.training', 'streamexit.calibration', 'torchvision', 'torch._dynamo.')\n"
        "print([m for m in sys.modules if f'{m}.'.startswith(slow)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(cifar_pipeline)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]"


def test_every_file_stands_in_the_map() -> None:
    """docs/architecture.md names each in the row of its room."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2:4] for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    missing = []
    for module in MODULES:
        if module.name == "__init__.py":
            continue
        path = module.relative_to(PACKAGE)
        room = f"`{path}`" if len(path.parts) == 1 else f"`{path.parts[0]}/`"
        told = [text for rooms, text in rows if room in rooms]
        if not told or (len(path.parts) > 1 and not any(f"`{path.stem}`" in t for t in told)):
            missing.append(str(path))
    assert missing == []


def test_every_module_says_what_it_is_for() -> None:
    """The first thing in a file is a sentence about it."""
    silent = [m for m in MODULES if not ast.get_docstring(ast.parse(m.read_text("utf-8")))]
    assert silent == []
