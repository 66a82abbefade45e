from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from streamexit.calibration.trace import Trace
from streamexit.cli.commands import app
from streamexit.models.pipeline import WEIGHTS, load_pipeline, sha256
from tests.end_to_end.test_command_line import streamexit

BUDGETS = ("--budgets", "0.5,0.7,0.9")


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON document that a command printed."""
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def refused(*arguments: object) -> Result:
    """A command line with a mistake, in this process: a new one imports PyTorch first."""
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def traces(
    toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], list[dict[str, Any]]]:
    """Two recorded traces, and what `record` said of them."""
    folder = tmp_path_factory.mktemp("traces")
    paths = [folder / "one.npz", folder / "two.npz"]
    said = []
    for seed, path in enumerate(paths):
        sources = [f"synthetic:seed={seed},frames=300", f"synthetic:seed={seed + 5},frames=260"]
        said.append(document(streamexit("record", toy_pipeline, *sources, "--out", path, "--json")))
    return paths, said


def test_record_reports_what_it_wrote(
    toy_pipeline: Path, traces: tuple[list[Path], list[dict[str, Any]]]
) -> None:
    """`record --json` gives frames, streams, accuracy and cost per exit, and the file is there."""
    (path, _), (report, _) = traces
    assert report["trace"] == str(path)
    assert (report["frames"], report["dropped"], report["kind"]) == (560, 0, "stream")
    assert len(set(report["streams"])) == 2
    assert report["bytes"] == path.stat().st_size
    assert len(report["accuracy_per_exit"]) == 3
    fractions = load_pipeline(toy_pipeline).costs.fractions
    assert report["cost_per_exit"] == pytest.approx(fractions, abs=1e-4)


def test_record_for_people(toy_pipeline: Path, tmp_path: Path) -> None:
    """Without --json each value comes on a line of its own, then a table with a row per exit."""
    out = tmp_path / "deep" / "t.npz"
    done = streamexit("record", toy_pipeline, "synthetic:frames=20", "-o", out)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "frames: 20" in lines
    assert "kind: stream" in lines
    assert lines[-4].split() == ["exit", "accuracy", "share", "of", "cost"]
    assert [line.split()[0] for line in lines[-3:]] == ["1", "2", "3"]
    assert "[" not in done.stdout
    assert out.is_file()


@pytest.mark.parametrize("kind", ["images", "stream"])
def test_record_takes_our_word_for_what_it_is(
    toy_pipeline: Path, tmp_path: Path, kind: str
) -> None:
    """Whether neighbours are alike is said by --kind, whatever the source."""
    out = tmp_path / "t.npz"
    arguments = ["synthetic:frames=20", "--kind", kind, "-o", str(out)]
    assert CliRunner().invoke(app, ["record", str(toy_pipeline), *arguments]).exit_code == 0
    assert Trace.open(out).header.kind == kind


def test_compare_says_of_what_it_is(
    traces: tuple[list[Path], list[dict[str, Any]]], toy_pipeline: Path
) -> None:
    """In JSON: the traces, the weights, the version; who leaves where, and what scores are worth."""
    judge, fit = map(str, traces[0])
    done = CliRunner().invoke(
        app,
        ["compare", judge, "--calibration", fit, "--methods", "msdnet", *BUDGETS, "--json"],
    )
    assert done.exit_code == 0, done.stderr
    (found,) = json.loads(done.stdout)["comparisons"]
    assert (found["trace"], found["calibration"]) == (judge, fit)
    assert found["weights_sha256"] == sha256(toy_pipeline / WEIGHTS)
    assert found["streamexit"] == version("streamexit")
    assert found["blocks"] == 12
    assert found["leaving"]["method"] == "msdnet"
    for shares in found["leaving"]["exit_shares"].values():
        assert sum(shares) == pytest.approx(1)
    for exit_bins in found["methods"]["msdnet"]["reliability"]:
        assert sum(one["share"] for one in exit_bins) == pytest.approx(1)


def test_compare_as_json(traces: tuple[list[Path], list[dict[str, Any]]]) -> None:
    """`compare --json` gives every method at every budget, and progress goes to stderr only."""
    paths, _ = traces
    done = streamexit(
        "compare", *paths, "--methods", "msdnet,direct,certainty+search", *BUDGETS,
        "--seeds", "2", "--json",
    )  # fmt: skip
    comparisons = document(done)["comparisons"]
    assert [c["trace"] for c in comparisons] == [str(path) for path in paths]
    for comparison in comparisons:
        assert comparison["seeds"] == 2
        assert list(comparison["methods"]) == ["msdnet", "direct", "certainty+search"]
        for method in comparison["methods"].values():
            assert list(method["budgets"]) == ["0.5", "0.7", "0.9"]
            for budget, runs in method["budgets"].items():
                assert len(runs) == 2
                for run in runs:
                    assert run["cost"] == pytest.approx(float(budget), rel=0.01)
                    assert run["interval"][0] <= run["accuracy"] <= run["interval"][1]
                    oracle = comparison["references"][budget]["oracle"]
                    assert 0 <= comparison["references"][budget]["random"] <= oracle <= 1
        assert comparison["reference"] == "msdnet"
        assert list(comparison["differences"]) == ["direct", "certainty+search"]
        for name, by_budget in comparison["differences"].items():
            for budget, found in by_budget.items():
                ours, base = (comparison["methods"][n]["budgets"][budget] for n in (name, "msdnet"))
                gaps = [a["accuracy"] - b["accuracy"] for a, b in zip(ours, base, strict=True)]
                assert found["gap"] == pytest.approx(sum(gaps) / 2)
                assert found["low"] <= found["gap"] <= found["high"]
                assert found["on_target"]
        assert comparison["calibration"] is None
    assert "msdnet ..." in done.stderr


def test_compare_for_people(traces: tuple[list[Path], list[dict[str, Any]]]) -> None:
    """Without --json a table comes, with a row per method and the two references."""
    paths, _ = traces
    done = streamexit(
        "compare", paths[0], "--calibration", paths[1], "--methods", "msdnet,pabee-counter",
        *BUDGETS, "--seeds", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "560 frames judged, 448 to fit on" in done.stdout
    firsts = [line.split()[0] for line in done.stdout.splitlines() if line.split()]
    assert {"msdnet", "pabee-counter", "random", "oracle"} <= set(firsts)
    assert "by its own rule (patience 1)" in done.stdout
    _, heading, differences = done.stdout.partition("difference to msdnet, in points")
    assert heading
    assert [line.split()[0] for line in differences.splitlines()[2:3]] == ["pabee-counter"]
    assert "only 12 blocks of frames to draw" in done.stdout
    for cell in differences.splitlines()[2].split()[1:]:
        assert re.fullmatch(r"[+-]\d+\.\d\d\+-\d+\.\d\d[!*]?", cell)


def test_compare_draws(traces: tuple[list[Path], list[dict[str, Any]]], tmp_path: Path) -> None:
    """--plot writes a picture per trace, four panels with the methods' names in them."""
    pytest.importorskip("matplotlib")
    paths, _ = traces
    done = streamexit(
        "compare", *paths, "--methods", "msdnet,direct", *BUDGETS, "--seeds", "1",
        "--plot", tmp_path / "deep" / "p.svg", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("p-1.svg", "p-2.svg"):
        drawn = ElementTree.parse(tmp_path / "deep" / name).getroot()
        assert drawn.tag.endswith("svg")
        panels = [e for e in drawn.iter() if e.get("id", "").startswith("axes_")]
        assert len(panels) >= 4
        assert sum(e.tag.endswith("path") for e in drawn.iter()) > 100


def test_compare_draws_into_known_kinds_only(
    traces: tuple[list[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """A picture of an unknown kind is refused in one line."""
    pytest.importorskip("matplotlib")
    done = streamexit(
        "compare", traces[0][0], "--methods", "msdnet", *BUDGETS, "--seeds", "1",
        "--plot", tmp_path / "p.gnat", "--json",
    )  # fmt: skip
    assert done.returncode == 2
    assert "--plot" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["synthetic:sed=1"], "did you mean 'seed'?"),
        (["nowhere.mp4"], "nowhere.mp4"),
        (["test"], "names no data set"),
        (["synthetic:frames=0"], "frames"),
        (["synthetic:frames=5", "--data", "."], "--data"),
        (["rtsp://127.0.0.1:9/x"], "live"),
        (["synthetic:frames=5", "--device", "tpu"], "not one of auto, cpu, cuda:0"),
    ],
)
def test_bad_record_arguments(
    toy_pipeline: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """Each mistake gets one line, exit code 2, and no file."""
    done = refused("record", toy_pipeline, *arguments, "--out", tmp_path / "t.npz")
    assert done.exit_code == 2, done.stdout
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "msdnet,magic"], "'magic' is unknown"),
        (["--methods", "eenets"], "no confidence branch"),
        (["--methods", "certainty+magic"], "unknown"),
        (["--budgets", "0.01"], "lies outside"),
        (["--budgets", "1.5"], "lies outside"),
        (["--budgets", "nan"], "lies outside"),
        (["--budgets", "half"], "not of the form"),
        (["--calibration", "nowhere.npz"], "nowhere.npz"),
        (["--calibration", "pyproject.toml"], "not a trace"),
    ],
)
def test_bad_compare_arguments(
    traces: tuple[list[Path], list[dict[str, Any]]], arguments: list[str], said: str
) -> None:
    """Each mistake gets one line that says what would be right, and exit code 2."""
    done = refused("compare", traces[0][0], *arguments)
    assert done.exit_code == 2, done.stdout
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_compare_of_no_trace() -> None:
    """A file that is no trace is refused by name, in one line."""
    done = refused("compare", "pyproject.toml")
    assert done.exit_code == 2
    assert "pyproject.toml: not a trace" in done.stderr
    assert done.stderr.count("\n") == 1
