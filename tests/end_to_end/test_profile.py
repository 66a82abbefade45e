"""Profiles, and budgets in milliseconds, through the command line and a running node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from streamexit.backends.opening import BackendOptions, profile_file
from streamexit.backends.profile import Profile
from streamexit.cli.commands import app

DEVICE = ("--device", "cpu")


def called(*arguments: str | Path) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def pipeline(toy_pipeline: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(toy_pipeline, tmp_path / "toy"))


@pytest.fixture
def profiled(pipeline: Path) -> Path:
    """With a profile of this device in which the last stage is as dear as the first two."""
    path = profile_file(pipeline, BackendOptions(device="cpu"))
    Profile("this device", {1: (1.0, 1.0, 2.0), 2: (1.0, 1.0, 2.0)}).save(path)
    return pipeline


def write_config(folder: Path, pipeline: Path, budget: dict[str, float]) -> Path:
    """A node on the CPU with one generated stream."""
    path = folder / "node.yaml"
    stream = {"id": "a", "source": "synthetic:seed=1,frames=1500", "pipeline": "toy", "window": 200}
    content: dict[str, Any] = {
        "engine": {"device": "cpu", "batch": 4},
        "results_file": "results.jsonl",
        "pipelines": {"toy": str(pipeline)},
        "streams": [{**stream, "budget": budget, "pace": "fast"}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_profile_writes_the_table_of_this_device(pipeline: Path) -> None:
    """One row per batch size, cumulative costs that rise, and a file that budgets find."""
    done = called("profile", pipeline, *DEVICE, "--max-batch", "2", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert set(document["milliseconds_per_frame"]) == {"1", "2"}
    assert len(document["batch"]) == 3
    costs = document["milliseconds_per_exit"]
    assert 0 < costs[0] < costs[1] < costs[2]
    assert "openvino" in document["device"]
    assert Profile.load(Path(document["file"])).costs().per_exit == tuple(costs)
    assert Path(document["file"]) == profile_file(pipeline, BackendOptions(device="cpu"))


def test_a_profile_lies_with_the_pipeline_that_was_named(
    tmp_path: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the name of one that ships, wherever the command runs."""
    monkeypatch.setattr("streamexit.models.shipped.shipped_pipelines", lambda: {"ships": pipeline})
    monkeypatch.chdir(tmp_path)
    done = called("profile", "ships", *DEVICE, "--max-batch", "1", "--json")
    assert done.exit_code == 0, done.output
    assert Path(json.loads(done.stdout)["file"]).is_relative_to(pipeline)


def test_profile_for_people(pipeline: Path) -> None:
    """A table that marks what a node would choose, and the file's name."""
    done = called("profile", pipeline, *DEVICE, "--max-batch", "1")
    assert done.exit_code == 0, done.output
    assert "frames per s" in done.stdout
    assert "written: " in done.stdout


def test_milliseconds_without_a_profile_are_refused(pipeline: Path, tmp_path: Path) -> None:
    """The message names the field and the command that helps."""
    config = write_config(tmp_path, pipeline, {"milliseconds_per_frame": 2.0})
    done = called("check", config)
    assert done.exit_code == 2
    assert "streams[0].budget: milliseconds need the profile" in done.stderr
    assert f"streamexit profile {pipeline}" in done.stderr


def test_milliseconds_below_the_first_exit_are_refused(profiled: Path, tmp_path: Path) -> None:
    """As with other budgets, with the least that is possible."""
    config = write_config(tmp_path, profiled, {"milliseconds_per_frame": 0.5})
    done = called("check", config)
    assert done.exit_code == 2
    assert "leaving at the first exit already costs 0.2500 (1.000 ms)" in done.stderr


def test_one_unit_at_a_time(profiled: Path, tmp_path: Path) -> None:
    """Two units are a contradiction, whatever they say."""
    both = {"milliseconds_per_frame": 2.0, "fraction": 0.5}
    done = called("check", write_config(tmp_path, profiled, both))
    assert done.exit_code == 2
    assert "give one of fraction" in done.stderr


def test_a_budget_in_milliseconds_is_held(profiled: Path, tmp_path: Path) -> None:
    """The mean of what the results say they cost, in milliseconds, is the budget."""
    config = write_config(tmp_path, profiled, {"milliseconds_per_frame": 2.2})
    checked = json.loads(called("check", config, "--json").stdout)["streams"]["a"]
    assert checked["budget"] == {
        "value": pytest.approx(2.2),
        "unit": "milliseconds",
        "per": "frame",
    }
    assert checked["full_cost"] == {"value": 4.0, "unit": "milliseconds"}
    done = called("run", config, "--json")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 1500
    assert {line["cost"]["unit"] for line in lines} == {"milliseconds"}
    assert {line["cost"]["value"] for line in lines} <= {1.0, 2.0, 4.0}
    for begin in range(200, 1300, 100):
        window = [line["cost"]["value"] for line in lines[begin : begin + 200]]
        assert sum(window) / 200 == pytest.approx(2.2, rel=0.06)


def test_a_replay_counts_gflops(profiled: Path) -> None:
    """Milliseconds would make a replay depend on the machine; it says so."""
    done = called(
        "replay",
        "synthetic:seed=1,frames=10",
        "--pipeline",
        profiled,
        "--budget",
        "milliseconds_per_frame=2",
    )
    assert done.exit_code == 2
    assert "a replay counts GFLOPs" in done.stderr
