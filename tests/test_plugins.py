"""Parts of other packages: those in samples/plugins, and broken ones."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from streamexit import (
    InputError,
    ThresholdTable,
    fit_policy,
    load_pipeline,
    load_policy,
    open_source,
    replay,
    save_pipeline,
    save_policy,
)
from streamexit.cli.commands import app
from streamexit.config.load import load_configuration
from streamexit.errors import ConfigurationError, PipelineError, PluginError, SourceError
from streamexit.models.architectures import build_network
from streamexit.models.pipeline import register_policies
from streamexit.plugins import load_plugin, plugins
from streamexit.runtime import Node
from streamexit.sinks import additional
from streamexit.sinks.additional import SinkThread
from streamexit.sources.access import Access
from streamexit.testing import TOY_LABELS, TOY_PREPROCESSING, toy_pictures
from streamexit.wire.messages import Result
from tests.conftest import ROOT
from tests.scheduling.test_policies import COSTS, SMALL
from tests.wire.test_messages import ENCODE, record

SAMPLES = ROOT / "samples" / "plugins"
Install = Callable[[str, dict[str, dict[str, str]]], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts packages where Python finds them, with the metadata that an installer writes."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(SAMPLES)

    def add(name: str, entries: dict[str, dict[str, str]]) -> None:
        folder = tmp_path / "site" / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = []
        for group, items in entries.items():
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in items.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
        plugins.cache_clear()

    yield add
    plugins.cache_clear()


@pytest.fixture
def examples(install: Install) -> None:
    """The sample package, installed."""
    project = tomllib.loads((SAMPLES / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install("examples", project["entry-points"])


@pytest.fixture
def toy_copy(toy_pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline folder that may be changed."""
    return shutil.copytree(toy_pipeline, tmp_path / "toy")


@pytest.mark.usefixtures("examples")
def test_a_network(tmp_path: Path) -> None:
    """It is found by its name, in recipes and in the pipeline folders made of them."""
    torch.manual_seed(0)
    spec: dict[str, Any] = {"architecture": "small_mobilenet", "num_classes": 4}
    network = build_network(spec, TOY_PREPROCESSING).eval()
    outputs = network(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert [tuple(output.logits.shape) for output in outputs] == [(2, 4)] * 3
    save_pipeline(
        tmp_path / "mine",
        name="mine",
        task={"kind": "classification", "top_k": 2},
        network_spec=spec,
        network=network,
        labels=TOY_LABELS,
        calibration=None,
    )
    assert load_pipeline(tmp_path / "mine").network.num_exits == 3


@pytest.mark.usefixtures("examples")
def test_a_scorer(toy_copy: Path) -> None:
    """Fitted by its name with any share rule, kept in a policy file, converted for the device."""
    pipeline = load_pipeline(toy_copy)
    policy = fit_policy("margin+geometric", SMALL, COSTS)
    assert isinstance(policy.table, ThresholdTable)
    pictures = {
        "a": open_source("synthetic:frames=400", preprocessing=TOY_PREPROCESSING, labels=())
    }
    of_toy = fit_policy("margin+search", SMALL, pipeline.costs.fractions)
    file = toy_copy / "policies" / "margin.safetensors"
    save_policy(of_toy, file)
    register_policies(toy_copy, {"margin": file}, default="margin")
    assert load_policy(file, pipeline.costs.fractions).scorer.kind == "margin"
    scores = []
    done = replay(
        pictures,
        pipeline=toy_copy,
        budget="fraction=0.7",
        on_record=lambda record: scores.append(record.score),
    )
    assert done.total.mean_cost == pytest.approx(0.7 * done.total.full_cost, rel=0.02)
    assert len(set(scores)) > 100


@pytest.mark.usefixtures("examples")
def test_a_source_and_a_sink(toy_pipeline: Path, tmp_path: Path) -> None:
    """A node reads the one and feeds the other; each answer is there once, in order."""
    frames = np.stack([picture.image for picture in toy_pictures(60)])
    np.save(tmp_path / "frames.npy", frames)
    content = {
        "pipelines": {"toy": str(toy_pipeline)},
        "results_file": "results.jsonl",
        "sinks": [{"kind": "csv", "path": "results.csv"}],
        "streams": [
            {
                "id": "a",
                "source": "npy:frames.npy",
                "rate": 10,
                "every": 2,
                "pace": "fast",
                "pipeline": "toy",
                "budget": {"fraction": 0.7},
            }
        ],
    }
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump(content))
    problems: list[str] = []
    asyncio.run(Node(load_configuration(path), on_problem=problems.append).run())
    wanted = [
        [r["captured_at"], "a", str(r["seq"]), r["answer"]["label"], str(r["exit"])]
        for r in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    ]
    with (tmp_path / "results.csv").open(newline="") as file:
        assert list(csv.reader(file)) == wanted
    assert len(wanted) == 30
    assert problems == []


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("npy:absent.npy", "No such file"),
        ("npy:float.npy", "is not uint8"),
        ("npz://x", "scheme 'npz' is unknown; did you mean 'npy'?"),
    ],
)
def test_a_source_that_does_not_like_its_text(tmp_path: Path, text: str, expected: str) -> None:
    """Is refused when the configuration is checked."""
    np.save(tmp_path / "float.npy", np.zeros((1, 8, 8, 3)))
    with pytest.raises(SourceError, match=expected):
        open_source(text, preprocessing=TOY_PREPROCESSING, labels=(), base=tmp_path)


@pytest.mark.usefixtures("examples")
def test_a_source_where_access_is_restricted(tmp_path: Path) -> None:
    """What it reads cannot be checked, so it has to be named."""
    np.save(tmp_path / "frames.npy", np.zeros((1, 8, 8, 3), np.uint8))

    def make(access: Access) -> object:
        return open_source(
            "npy:frames.npy",
            preprocessing=TOY_PREPROCESSING,
            labels=(),
            base=tmp_path,
            access=access,
        )

    assert make(Access())
    assert make(Access(schemes=frozenset({"npy"}), roots=()))
    with pytest.raises(SourceError, match=r"name npy in access\.schemes"):
        make(Access(roots=(tmp_path,)))
    with pytest.raises(SourceError, match="npy sources are not allowed here"):
        make(Access(schemes=frozenset({"file"})))


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize(
    ("sink", "expected"),
    [
        ({"kind": "kafka"}, "line 2, sinks[0].kind: streamexit.sinks: 'kafka' is not installed; "),
        ({"path": "x.csv"}, "line 2, sinks[0]: 'kind' is missing"),
        (
            {"kind": "csv", "pth": "x.csv"},
            "line 2, sinks[0]: csv: missing a required argument: 'path'",
        ),
    ],
)
def test_a_sink_that_is_not_there(
    toy_pipeline: Path, tmp_path: Path, sink: dict[str, str], expected: str
) -> None:
    """`check` says so, with what is installed."""
    content = f"""pipelines: {{toy: {toy_pipeline}}}
sinks: [{json.dumps(sink)}]
streams: [{{id: a, source: "synthetic:", pipeline: toy, budget: {{fraction: 0.7}}}}]
"""
    path = tmp_path / "node.yaml"
    path.write_text(content)
    done = CliRunner().invoke(app, ["check", str(path)])
    assert done.exit_code == 2
    assert expected in done.stderr


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("options", [{"path": "/absent/x.csv"}, {"file": "x.csv"}])
def test_a_sink_that_does_not_like_its_options(
    toy_pipeline: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    """The node does not start, and says where they stand."""
    stream = {"id": "a", "source": "synthetic:", "pipeline": "toy", "budget": {"fraction": 0.7}}
    content = {
        "pipelines": {"toy": str(toy_pipeline)},
        "sinks": [{"kind": "csv", **options}],
        "streams": [stream],
    }
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump(content))
    node = Node(load_configuration(path), on_problem=print)
    with pytest.raises(ConfigurationError, match=r"line \d+, sinks\[0\]: csv: "):
        asyncio.run(node.run())


class Moody:
    """A sink that fails for some, and waits to be let go on."""

    def __init__(self) -> None:
        self.took: list[int] = []

    def write(self, result: Result) -> None:
        """Odd ones are refused."""
        if result.seq % 2:
            raise RuntimeError("odd")
        self.took.append(result.seq)

    def close(self) -> None:
        """Fails, too."""
        raise OSError("no space")


def test_a_sink_that_fails_holds_up_nothing() -> None:
    """Each kind of problem is said once, and in the end how many results it did not take."""
    problems: list[str] = []
    sink = Moody()
    thread = SinkThread("moody", sink, on_problem=problems.append)
    for seq in range(10):
        thread.write(ENCODE(record(), 0.0).model_copy(update={"seq": seq}))
    thread.close()
    assert sink.took == [0, 2, 4, 6, 8]
    assert (thread.written, thread.failed, thread.dropped) == (5, 5, 0)
    assert problems == [
        "sink moody: RuntimeError: odd",
        "sink moody: while closing: OSError: no space",
        "sink moody: of 10 results 5 were written, 5 refused, 0 dropped, 0 not taken before the end",
    ]


class Stuck:
    """A sink that waits for what does not come."""

    def __init__(self) -> None:
        self.entered, self.free = threading.Event(), threading.Event()

    def write(self, result: Result) -> None:
        """Until it may go on."""
        self.entered.set()
        assert self.free.wait(60)

    def close(self) -> None:
        """Nothing to do."""


def test_a_sink_that_hangs_loses_what_it_cannot_take_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So many wait, the rest is dropped; the end does not wait for it, and the books are whole."""
    monkeypatch.setattr(additional, "WAITING_RESULTS", 3)
    monkeypatch.setattr(additional, "GOODBYE_SECONDS", 0.0)
    problems: list[str] = []
    sink = Stuck()
    thread = SinkThread("stuck", sink, on_problem=problems.append)
    thread.write(ENCODE(record(), 0.0))
    assert sink.entered.wait(60)
    for _ in range(5):
        thread.write(ENCODE(record(), 0.0))
    thread.close()
    sink.free.set()
    assert problems == [
        "sink stuck: takes results more slowly than they come; beyond 3 they are dropped",
        "sink stuck: of 6 results 0 were written, 0 refused, 2 dropped, 4 not taken before the end",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("absent_module:x", "cannot be imported: ModuleNotFoundError"),
        ("streamexit.errors:absent", "cannot be imported: AttributeError"),
        ("streamexit.errors:InputError", "is no class derived from Scorer"),
        ("streamexit.scheduling.scorers:Vote", "the kind of Vote must be 'mine'"),
    ],
)
def test_a_scorer_that_is_none(install: Install, value: str, expected: str) -> None:
    """The message names the entry point and what is wrong with it."""
    install("broken", {"streamexit.scorers": {"mine": value}})
    with pytest.raises(PluginError, match=expected):
        fit_policy("mine+search", SMALL, COSTS)


def test_two_packages_with_one_name(install: Install) -> None:
    """Which one is meant cannot be known."""
    for name in ("one", "two"):
        install(name, {"streamexit.sinks": {"csv": f"{name}:Sink"}})
    with pytest.raises(PluginError, match=r"'csv' is both (one|two):Sink and (one|two):Sink"):
        load_plugin("streamexit.sinks", "csv")


@pytest.mark.usefixtures("examples")
def test_what_is_not_installed_is_said_with_what_is() -> None:
    """Networks and scorers of plugins are among the suggestions."""
    with pytest.raises(PipelineError, match="did you mean 'small_mobilenet'"):
        build_network({"architecture": "small_mobilnet"}, TOY_PREPROCESSING)
    with pytest.raises(PipelineError, match=r"a pair SCORER\+RULE of .*margin"):
        fit_policy("margins+search", SMALL, COSTS)
    with pytest.raises(InputError, match="installed are: csv"):
        load_plugin("streamexit.sinks", "cvs")


@pytest.mark.parametrize("part", ["network", "scorer", "source", "sink"])
def test_the_page_shows_the_samples(part: str) -> None:
    """As they are, in thirty lines or less."""
    code = (SAMPLES / "streamexit_examples" / f"{part}.py").read_text(encoding="utf-8")
    assert code.count("\n") <= 30
    assert f"```python\n{code}```" in (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
