"""How the house stands: `python -m benchmarks.house` prints sizes, types, docstrings and imports.

A module is a file of the package that holds more than its docstring. Source lines are all lines; code
lines are neither blank nor a comment nor of a docstring. A function is every `def`, in classes and in
functions, too, from its `def` to its end; its decorators do not count, its docstring does in one figure and
does not in the other. Public is what stands in no function and has no underscore on the way to it. An
import is one of another module, wherever in the file. A circle is a set of modules that all reach each
other; upward is what goes to another room that does not lie lower by tests/test_architecture.py.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

PACKAGE = "streamexit"
LONG = 25


@dataclass(frozen=True)
class Definition:
    """A function or class; `name` is as Python's __qualname__."""

    place: str
    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

    @property
    def public(self) -> bool:
        """It can be named from outside, and is not private."""
        return not any(part.startswith(("_", "<")) for part in self.name.split("."))

    @property
    def lines(self) -> int:
        """From its `def` to its end."""
        return (self.node.end_lineno or 0) - self.node.lineno + 1

    @property
    def code(self) -> int:
        """The same without the docstring."""
        return self.lines - sum(map(len, lone_strings(self.node.body)))

    @property
    def typed(self) -> bool:
        """All parameters but self and cls, and the return, are annotated."""
        assert not isinstance(self.node, ast.ClassDef)
        of = self.node.args
        given = [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]
        open_ = [a for a in given if a.annotation is None and a.arg not in ("self", "cls")]
        return not open_ and self.node.returns is not None


@dataclass(frozen=True)
class Module:
    """A file of the package: its dotted name, its path in the package, and what is in it."""

    name: str
    path: str
    lines: list[str]
    tree: ast.Module

    @property
    def code(self) -> int:
        """How many lines are neither blank nor a comment nor of a docstring."""
        silent = {n for lines in lone_strings(ast.walk(self.tree)) for n in lines}
        lines = enumerate(map(str.strip, self.lines), 1)
        return sum(n not in silent and bool(s) and not s.startswith("#") for n, s in lines)

    def definitions(self, parent: ast.AST, path: str = "") -> Iterator[Definition]:
        """All functions and classes inside `parent`, however deep; `path` is its name."""
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{path}.{node.name}".lstrip(".")
                yield Definition(f"{self.path}:{node.lineno}", name, node)
                inside = name if isinstance(node, ast.ClassDef) else f"{name}.<locals>"
                yield from self.definitions(node, inside)
            else:
                yield from self.definitions(node, path)

    def imports(self, known: Mapping[str, Module]) -> set[str]:
        """Names of the other modules that it imports."""
        names: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in known else node.module for name in inner}
        return (names & known.keys()) - {self.name}


def lone_strings(nodes: Iterable[ast.AST]) -> list[range]:
    """Lines of each string that is a statement: docstrings, those of attributes, too."""
    values = [n.value for n in nodes if isinstance(n, ast.Expr)]
    strings = [v for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    return [range(v.lineno, (v.end_lineno or 0) + 1) for v in strings]


def read(root: Path) -> dict[str, Module]:
    """Name -> module of the package under `root`."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        inner, text = path.relative_to(root / PACKAGE), path.read_text(encoding="utf-8")
        name = ".".join((PACKAGE, *inner.with_suffix("").parts)).removesuffix(".__init__")
        found[name] = Module(name, inner.as_posix(), text.splitlines(), ast.parse(text))
    return found


def floors(root: Path) -> dict[str, int]:
    """Room -> floor, read out of the test that guards it, because its imports are heavy."""
    guard = ast.parse((root / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    assigned = (node for node in guard.body if isinstance(node, ast.Assign))
    found = next(node.value for node in assigned if ast.unparse(node.targets[0]) == "FLOORS")
    return {"__init__": 99, **ast.literal_eval(found)}


def circles(graph: Mapping[str, set[str]]) -> list[frozenset[str]]:
    """The sets of more than one module that all reach each other."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        reached[name], waiting = set(), [name]
        while waiting:
            new = graph[waiting.pop()] - reached[name]
            reached[name] |= new
            waiting += new
    sets = {frozenset(b for b in found if a in reached[b]) for a, found in reached.items()}
    return sorted((s for s in sets if len(s) > 1), key=sorted)


def upward(graph: Mapping[str, set[str]], rooms: Mapping[str, int]) -> list[tuple[str, str]]:
    """(module, import) for each import to another room that does not lie lower."""
    room = {name: [*name.split("."), "__init__"][1] for name in graph}
    pairs = [(a, b) for a in graph for b in sorted(graph[a]) if room[a] != room[b]]
    return [(a, b) for a, b in pairs if rooms[room[b]] >= rooms[room[a]]]


def spread(lengths: list[int]) -> str:
    """Median and 90th percentile."""
    return f"{median(lengths):.0f} / {quantiles(lengths, n=10, method='inclusive')[-1]:.0f}"


def share(yes: list[bool]) -> str:
    """In per cent, rounded down: 100% is all."""
    return f"{1000 * sum(yes) // len(yes) / 10:g}%"


def report(root: Path, worst: int = 0) -> Iterator[str]:
    """The lines to print: the table, each thing that is wrong, and what is longest."""
    modules = read(root)
    graph = {name: module.imports(modules) for name, module in modules.items()}
    wrong, rising = circles(graph), upward(graph, floors(root))
    defined = [d for m in modules.values() for d in m.definitions(m.tree)]
    functions = [d for d in defined if not isinstance(d.node, ast.ClassDef)]
    documented = [bool(ast.get_docstring(d.node)) for d in defined if d.public]
    files = sorted((m for m in modules.values() if m.code), key=lambda m: -len(m.lines))
    long = sorted((d for d in functions if d.code > LONG), key=lambda d: -d.code)
    lines = sum(len(m.lines) for m in modules.values())
    tests = sum(len(p.read_text("utf-8").splitlines()) for p in (root / "tests").rglob("*.py"))
    sizes = f"{median(len(m.lines) for m in files):.0f} / {len(files[0].lines)} ({files[0].path})"
    for row in (
        ("", PACKAGE, "wanted"),
        ("---", "---", "---"),
        ("modules", f"{len(files)}", ""),
        ("source lines, code / all", f"{sum(m.code for m in files)} / {lines}", ""),
        ("median / largest module (lines)", sizes, "120 / 300"),
        ("median / p90 function (lines)", spread([d.lines for d in functions]), "7 / 25"),
        ("the same without docstrings", spread([d.code for d in functions]), ""),
        (f"functions over {LONG} lines without docstring", f"{len(long)}", ""),
        ("functions with types", share([d.typed for d in functions]), "100%"),
        ("public with docstrings", share(documented), "100%"),
        ("test lines per source line", f"{tests / lines:.2f}", "about 1"),
        ("import circles / upward imports", f"{len(wrong)} / {len(rising)}", "0 / 0"),
    ):
        yield f"| {' | '.join(row)} |"
    yield from (f"circle: {', '.join(sorted(circle))}" for circle in wrong)
    yield from (f"upward: {a} imports {b}" for a, b in rising)
    yield from (f"without types: {d.name} ({d.place})" for d in functions if not d.typed)
    if worst:
        yield "\nLongest functions, lines without docstring / with it:"
        yield from (f"- {d.code} / {d.lines} {d.name} ({d.place})" for d in long[:worst])
        yield "\nLongest modules, lines of code / all:"
        yield from (f"- {m.code} / {len(m.lines)} {m.path}" for m in files[:worst])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="of a checkout")
    parser.add_argument("--worst", type=int, default=0, help="so many functions and modules, too")
    options = parser.parse_args()
    print("\n".join(report(options.root, options.worst)))


if __name__ == "__main__":
    main()
