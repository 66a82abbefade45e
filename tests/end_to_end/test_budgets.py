"""Budgets of running nodes: changed, kept over a restart, shared out; through files and processes."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from streamexit.backends.opening import BackendOptions, profile_file
from streamexit.backends.profile import Profile
from streamexit.cli.commands import app
from streamexit.config.load import load_configuration
from streamexit.errors import BudgetError
from streamexit.exits import Budget
from streamexit.runtime import Node
from tests.end_to_end.test_reload import alive

TIME_LIMIT = 90


def write_config(
    folder: Path,
    pipeline: Path,
    *budgets: dict[str, Any],
    engine: dict[str, Any] | None = None,
    **keys: Any,
) -> Path:
    """A node with one generated stream per budget, "a", "b", ..."""
    streams = [
        {
            "id": "abcd"[i],
            "source": f"synthetic:seed={i + 1},frames=1500",
            "pipeline": "toy",
            "budget": budget,
            "pace": "fast",
            "window": 200,
            "shadow": 0.05,
        }
        for i, budget in enumerate(budgets)
    ]
    content = {
        "engine": {"device": "cpu", "batch": 4, **(engine or {})},
        "results_file": "results.jsonl",
        "pipelines": {"toy": str(pipeline)},
        "streams": streams,
        **keys,
    }
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def results(folder: Path, stream: str = "a") -> list[dict[str, Any]]:
    """What a node has written."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["stream"] == stream]


def mean_fraction(lines: list[dict[str, Any]], full: float) -> float:
    """Of their cost."""
    return sum(float(line["cost"]["value"]) for line in lines) / len(lines) / full


def run_changing(config: Path, budget: Budget | None) -> Node:
    """Run a node to its end; its budget changes as soon as it has started."""
    problems: list[str] = []
    node = Node(load_configuration(config), on_problem=problems.append)

    def ready() -> None:
        if budget:
            node.governor.set_budget("a", budget, cause="a test")

    asyncio.run(asyncio.wait_for(node.run(ready=ready), TIME_LIMIT))
    assert not problems
    return node


def test_a_changed_budget_is_held_and_kept_over_a_restart(
    toy_pipeline: Path, tmp_path: Path
) -> None:
    """It survives a restart, until somebody writes another one into the configuration."""
    config = write_config(tmp_path, toy_pipeline, {"fraction": 0.6}, state_file="kept.json")
    node = run_changing(config, Budget(0.85))
    full = node.streams["a"].plan.costs.full
    assert mean_fraction(results(tmp_path)[500:], full) == pytest.approx(0.85, rel=0.03)
    view = node.governor.view("a")
    assert view.last_change == "budget fraction=0.6 -> fraction=0.85: a test"
    assert view.shadow_frames >= 30
    assert view.agreement is not None
    assert view.agreement.low <= view.agreement.value <= view.agreement.high
    again = run_changing(config, None)
    assert again.governor.terms("a").amount == 0.85
    assert "kept from before the restart" in str(again.governor.view("a").last_change)
    assert mean_fraction(results(tmp_path)[-1000:], full) == pytest.approx(0.85, rel=0.03)
    write_config(tmp_path, toy_pipeline, {"fraction": 0.7}, state_file="kept.json")
    assert run_changing(config, None).governor.terms("a").amount == 0.7


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(0.01), "out of reach; leaving at the first exit already costs"),
        (Budget(2.0, "milliseconds_per_frame"), "this stream counts gflops"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_at_run_time(
    toy_pipeline: Path, tmp_path: Path, budget: Budget, expected: str
) -> None:
    """The old one stays."""
    config = write_config(tmp_path, toy_pipeline, {"fraction": 0.6})
    node = Node(load_configuration(config), on_problem=print)
    with pytest.raises(BudgetError, match=expected):
        node.governor.set_budget("a", budget, cause="a test")
    with pytest.raises(BudgetError, match="stream 'z' is unknown"):
        node.governor.set_budget("z", Budget(0.6), cause="a test")
    assert node.governor.terms("a").amount == 0.6


def test_a_damaged_state_file_stops_nobody(toy_pipeline: Path, tmp_path: Path) -> None:
    """It is said, the file is kept under another name, and the node runs."""
    config = write_config(tmp_path, toy_pipeline, {"fraction": 0.6}, state_file="kept.json")
    (tmp_path / "kept.json").write_text('{"schema":"streamexit.memory/1","str')
    done = CliRunner().invoke(app, ["run", str(config), "--json"])
    assert done.exit_code == 0, done.output
    assert "kept.json cannot be used" in done.stderr
    assert (tmp_path / "kept.json.unusable").exists()
    assert json.loads((tmp_path / "kept.json").read_text())["streams"]["a"]["budget"]


def test_budgets_are_read_again_at_sighup(toy_pipeline: Path, tmp_path: Path) -> None:
    """A file that was edited takes effect while the node runs; one with a mistake changes nothing."""
    config = write_config(tmp_path, toy_pipeline, {"fraction": 0.6})
    text = config.read_text().replace("pace: fast", "rate: 300\n  loop: true")
    config.write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-m", "streamexit", "run", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    full = 0.0
    try:
        assert any("node node on" in line for line in process.stderr)
        config.write_text(text.replace("fraction: 0.6", "fraction: zero"))
        process.send_signal(signal.SIGHUP)
        said = next(line for line in process.stderr if line.startswith("error"))
        assert "streams[0].budget.fraction" in said
        config.write_text(text.replace("fraction: 0.6", "fraction: 0.9"))
        process.send_signal(signal.SIGHUP)
        node = Node(load_configuration(config), on_problem=print)
        full = node.streams["a"].plan.costs.full
        follow = ["tail", "-n", "+1", "-F", str(tmp_path / "results.jsonl")]
        with subprocess.Popen(follow, stdout=subprocess.PIPE) as tail:
            assert tail.stdout
            for _ in range(len(results(tmp_path)) + 1000):
                assert tail.stdout.readline()
            tail.terminate()
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0
    assert "budget fraction=0.6 -> fraction=0.9: the configuration was read again" in log
    assert mean_fraction(results(tmp_path)[-600:], full) == pytest.approx(0.9, rel=0.03)


@pytest.fixture
def profiled(toy_pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline that takes 4 ms per frame here, by its profile."""
    pipeline = Path(shutil.copytree(toy_pipeline, tmp_path / "toy"))
    path = profile_file(pipeline, BackendOptions(device="cpu"))
    Profile("this device", {1: (1.0, 1.0, 2.0)}).save(path)
    return pipeline


def test_a_device_is_shared_out(profiled: Path, tmp_path: Path) -> None:
    """25 frames per second at a half of 4 ms are 50 ms/s: one fits, one is shrunk, one refused."""
    budgets = [{"fraction": 0.5}, {"milliseconds_per_frame": 2.0}, {"fraction": 0.5}]
    config = write_config(tmp_path, profiled, *budgets, engine={"milliseconds_per_second": 80})
    done = CliRunner().invoke(app, ["run", str(config), "--json"])
    assert done.exit_code == 2, done.output
    assert "b: 25 frames per second at 50.0% of 4 ms take 50.0 ms/s" in done.stderr
    assert "it gets 30.0%" in done.stderr
    assert "c is refused" in done.stderr
    streams = json.loads(done.stdout)["streams"]
    assert (streams["c"]["state"], streams["c"]["reason"]) == ("error", "no_capacity")
    assert streams["c"]["answered"] == 0
    assert streams["a"]["answered"] == streams["b"]["answered"] == 1500
    assert {line["cost"]["unit"] for line in results(tmp_path)} == {"milliseconds"}


def test_a_shared_device_is_divided_anew_by_a_file_that_is_read_again(
    profiled: Path, tmp_path: Path
) -> None:
    """Whoever is to have less makes room for the others first, wherever it stands in the file."""
    engine = {"milliseconds_per_second": 100}  # 25 frames per second of 4 ms

    def write(*fractions: float) -> Path:
        budgets = [{"fraction": fraction} for fraction in fractions]
        path = write_config(tmp_path, profiled, *budgets, engine=engine)
        path.write_text(path.read_text().replace("pace: fast", "pace: realtime"))
        return path

    problems: list[str] = []
    node = Node(load_configuration(write(0.9)), on_problem=problems.append)

    async def body() -> None:
        async with alive(node):
            for fractions in ((0.4, 0.5), (0.6, 0.3), (0.3, 0.4, 0.3)):
                write(*fractions)
                assert not (await node.reload(cause="test")).data["problems"]
                held = [node.governor.terms(name).amount for name in node.streams]
                assert held == pytest.approx(fractions)

    asyncio.run(body())
    assert not problems


def test_another_frame_rate_in_the_file_is_another_promise(profiled: Path, tmp_path: Path) -> None:
    """It makes room, or needs some; a budget that a command has set stays."""
    engine, budget = {"milliseconds_per_second": 100}, {"fraction": 0.6}
    config = write_config(tmp_path, profiled, budget, budget, engine=engine)
    config.write_text(config.read_text().replace("pace: fast", "frame_rate: 10"))
    node = Node(load_configuration(config), on_problem=print)
    node.governor.set_budget("a", Budget(0.8), cause="a test")
    sections = load_configuration(config).value.streams
    assert node.governor.allocated == pytest.approx(10 * 4 * (0.8 + 0.6))
    node.governor.take_over(sections[0].model_copy(update={"frame_rate": 5.0}))
    assert node.governor.budget("a") == Budget(0.8)
    assert node.governor.allocated == pytest.approx(5 * 4 * 0.8 + 10 * 4 * 0.6)


def test_gflops_do_not_go_with_a_shared_device(profiled: Path, tmp_path: Path) -> None:
    """Time is shared out, so a budget has to be one of time."""
    config = write_config(
        tmp_path, profiled, {"gflops_per_frame": 1.0}, engine={"milliseconds_per_second": "auto"}
    )
    done = CliRunner().invoke(app, ["check", str(config)])
    assert done.exit_code == 2
    assert "give the budget as a fraction or in milliseconds" in done.stderr


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"fraction": 0}, "greater than 0"),
        ({"fraction": -1}, "greater than 0"),
        ({"fraction": ".nan"}, "finite"),
        ("40%", "streams[0].budget: '40%': name the unit, as in {fraction: 0.4}"),
        ({"fraction": 40}, "40 is above 1, which is the full network; 40% is 0.4"),
        ({"watts": 5}, "watts"),
        ({"fraction": 0.5, "gflops_per_second": 1}, "give one of"),
        ({"fraction": 0.5, "floor": 0.9, "cap": 0.6}, "floor 0.9 is above cap 0.6"),
        ({"gflops_per_second": 1, "strict": True}, "strict: true counts frames"),
    ],
)
def test_nonsense_is_refused(
    toy_pipeline: Path, tmp_path: Path, budget: Any, expected: str
) -> None:
    """With file, line and field."""
    config = write_config(tmp_path, toy_pipeline, budget)
    config.write_text(config.read_text().replace("'.nan'", ".nan"))
    done = CliRunner().invoke(app, ["check", str(config)])
    assert done.exit_code == 2
    assert "streams[0].budget" in done.stderr
    assert expected in done.stderr


def test_check_names_what_an_overlay_says(toy_pipeline: Path, tmp_path: Path) -> None:
    """Else an edit of the file would seem to be ignored."""
    config = write_config(tmp_path, toy_pipeline, {"fraction": 0.6})
    stream_id = load_configuration(config).value.streams[0].id
    overlay = config.with_suffix(".overlay.yaml")
    overlay.write_text(f"changed: {{{stream_id}: {{budget: {{fraction: 0.8}}}}}}\n")
    done = CliRunner().invoke(app, ["check", str(config)])
    assert done.exit_code == 0, done.stderr
    assert "80.0% of full" in done.stdout
    said = done.stdout.replace("\n", "")
    assert f"by an earlier command: {overlay}, changed.{stream_id}.budget" in said


@pytest.mark.parametrize(
    ("budget", "shown"),
    [
        ({"fraction": 0.6, "strict": True}, "60.0% of full, strict"),
        ({"fraction": 1.0}, "100.0% of full, not binding"),
        ({"gflops_per_second": 0.5}, "0.5 GFLOPs/s"),
    ],
)
def test_check_shows_how_a_budget_is_held(
    toy_pipeline: Path, tmp_path: Path, budget: dict[str, Any], shown: str
) -> None:
    """In words."""
    done = CliRunner().invoke(app, ["check", str(write_config(tmp_path, toy_pipeline, budget))])
    assert done.exit_code == 0, done.output
    assert shown in done.stdout
