from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamexit.config.load import load_configuration
from streamexit.config.schema import EngineSection, NodeConfiguration
from streamexit.documents import Document
from streamexit.errors import ConfigurationError, OperationError
from streamexit.models.pipeline import load_pipeline, register_policies
from streamexit.planning.streams import PlannedStream, plan_streams
from streamexit.roster import Roster, lane_key
from streamexit.scheduling.policy import save_policy


def configured(folder: Path, pipeline: Path, **stream: str) -> Document[NodeConfiguration]:
    """A configuration of one stream; its keys are on lines 5 to 8 and then those of `stream`."""
    keys = {"id": "a", "pipeline": "toy", "budget": "{fraction: 0.6}", "source": "'synthetic:'"}
    lines = [f"    {key}: {value}" for key, value in {**keys, **stream}.items()]
    file = folder / "node.yaml"
    text = "\n".join([f"pipelines:\n  toy: {pipeline}\nstreams:\n  -", *lines])
    file.write_text(text + "\n")
    return load_configuration(file)


def plan(folder: Path, pipeline: Path, **stream: str) -> list[PlannedStream]:
    """Plan one stream."""
    return plan_streams(configured(folder, pipeline, **stream))


def refusal(folder: Path, pipeline: Path, **stream: str) -> str:
    """The message that such a stream is refused with."""
    with pytest.raises(ConfigurationError) as caught:
        plan(folder, pipeline, **stream)
    assert str(folder / "node.yaml") in str(caught.value)
    return str(caught.value)


def test_plan_holds_what_the_stream_needs(tmp_path: Path, toy_pipeline: Path) -> None:
    """A right configuration gives the loaded pipeline, its default policy and the budget's share."""
    (stream,) = plan(tmp_path, toy_pipeline)
    assert stream.pipeline.name == "toy"
    assert stream.policy.name == "direct"
    assert stream.terms.amount == 0.6
    assert not stream.source.live


def test_a_policy_that_is_fitted_anew_is_another_one(tmp_path: Path, toy_pipeline: Path) -> None:
    """Streams share a network, and its scorer, by what the policy is and not by its name alone."""
    folder = tmp_path / "toy"
    shutil.copytree(toy_pipeline, folder)
    before, again = (plan(tmp_path, folder, policy="eenet")[0] for _ in range(2))
    assert lane_key(before) == lane_key(again)
    file = folder / "policies" / "eenet.safetensors"
    save_policy(replace(before.policy, provenance={"fitted": "anew"}), file)
    register_policies(folder, {"eenet": file}, default="direct")
    (after,) = plan(tmp_path, folder, policy="eenet")
    assert after.policy.name == before.policy.name
    assert lane_key(after) != lane_key(before)


def test_networks_whose_policies_have_one_name_are_told_apart() -> None:
    """As where a policy was fitted anew while a stream ran: metrics count them apart."""
    nothing: Any = None
    roster = Roster(
        nothing, nothing, nothing, nothing,
        settings=nothing, backend=nothing, node="n", boot_id="b", timezone=None,
        on_state=nothing, on_preparation=nothing,
    )  # fmt: skip
    before: Any = object()
    after: Any = object()
    roster._lanes = {
        (Path("toy"), "eenet", "1f"): ("toy", before),
        (Path("toy"), "eenet", "2e"): ("toy", after),
    }
    assert roster.networks() == [(("toy", "eenet"), before), (("toy", "eenet@2e"), after)]


def test_plan_takes_the_named_policy_and_gflops(tmp_path: Path, toy_pipeline: Path) -> None:
    """A stream may name its policy, and a budget in GFLOPs becomes a share of the full network."""
    costs = load_pipeline(toy_pipeline).costs
    budget = f"{{gflops_per_frame: {costs.full / 2:.12f}}}"
    (stream,) = plan(tmp_path, toy_pipeline, policy="msdnet", budget=budget)
    assert stream.policy.name == "msdnet"
    assert stream.terms.amount == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("unit", ["fraction", "gflops_per_frame"])
def test_budget_below_the_first_exit_is_refused_with_the_minimum(
    tmp_path: Path, toy_pipeline: Path, unit: str
) -> None:
    """A budget out of reach is refused, and the minimum that the message names is accepted."""
    costs = load_pipeline(toy_pipeline).costs
    message = refusal(tmp_path, toy_pipeline, budget=f"{{{unit}: 1.0e-6}}")
    assert "line 7, streams[0].budget" in message
    found = re.search(r"costs ([0-9.e-]+) \(([0-9.e-]+) GFLOPs", message)
    assert found
    named = float(found.group(1 if unit == "fraction" else 2))
    reachable = costs.fractions[0] if unit == "fraction" else costs.per_exit[0]
    assert named == pytest.approx(reachable, rel=0.01)
    assert plan(tmp_path, toy_pipeline, budget=f"{{{unit}: {named:.9f}}}")


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ({"policy": "eenett"}, ["streams[0].policy", "'eenett'", "did you mean 'eenet'?"]),
        ({"source": "'synthetic:sed=1'"}, ["line 8, streams[0].source", "did you mean 'seed'?"]),
        ({"source": "'synthetic:seed=x'"}, ["line 8, streams[0].source", "whole number"]),
        ({"source": "rtsp://127.0.0.1/x", "loop": "true"}, ["line 9, streams[0].loop", "live"]),
        ({"source": "rtsp://127.0.0.1/x", "pace": "fast"}, ["line 9, streams[0].pace", "is live"]),
        ({"source": "/dev/null", "rate": "5"}, ["line 9, streams[0].rate", "frame_rate"]),
        ({"pace": "fast", "deadline_ms": "5"}, ["line 10, streams[0].deadline_ms", "realtime"]),
        (
            {"source": "{url: 'https://127.0.0.1/x', ca_file: none.pem}"},
            ["line 8, streams[0].source: ca_file: no such file", "none.pem"],
        ),
    ],
)
def test_what_does_not_fit_the_pipeline_is_refused(
    tmp_path: Path, toy_pipeline: Path, stream: dict[str, str], expected: list[str]
) -> None:
    """Policies, sources and loops that cannot be are refused before anything is opened."""
    message = refusal(tmp_path, toy_pipeline, **stream)
    for part in expected:
        assert part in message


def test_broken_pipeline_is_refused_where_the_configuration_names_it(
    tmp_path: Path, toy_pipeline: Path
) -> None:
    """An error in a pipeline folder also names the line of the configuration that asked for it."""
    assert "line 2, pipelines.toy" in refusal(tmp_path, tmp_path / "nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(toy_pipeline, broken)
    (broken / "network.safetensors").unlink()
    message = refusal(tmp_path, broken)
    assert "line 2, pipelines.toy" in message
    assert "network.safetensors: missing" in message


def test_pipeline_whose_task_is_unknown_is_refused(tmp_path: Path, toy_pipeline: Path) -> None:
    """A pipeline with a task that this version does not know is found before the node starts."""
    odd = tmp_path / "odd"
    shutil.copytree(toy_pipeline, odd)
    file = odd / "pipeline.yaml"
    file.write_text(file.read_text().replace("kind: classification", "kind: levitation"))
    assert "levitation" in refusal(tmp_path, odd)


def test_looped_recording_starts_again(tmp_path: Path, toy_pipeline: Path) -> None:
    """A recording with loop: true yields more pictures than it has, at rising times."""
    (stream,) = plan(tmp_path, toy_pipeline, source="'synthetic:frames=3'", loop="true")
    pictures = stream.source.pictures(lambda reason: None)
    times = [next(pictures).pts_seconds for _ in range(8)]
    assert times == sorted(set(times))


def test_a_source_that_is_not_there_is_refused(tmp_path: Path, toy_pipeline: Path) -> None:
    """A file is looked for beside the configuration, and refused when it is not there."""
    message = refusal(tmp_path, toy_pipeline, source="clip.mp4")
    assert "line 8, streams[0].source: 'clip.mp4'" in message
    assert str(tmp_path / "clip.mp4") in message
    (tmp_path / "clip.mp4").touch()
    assert not plan(tmp_path, toy_pipeline, source="clip.mp4")[0].source.live


RTSP = "rtsp://127.0.0.1/x"


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"max_age_s": "1"}, ["max_age_s", "live streams"]),
        ({"active_hours": "[07:00-19:00]"}, ["active_hours", "live streams"]),
        ({"attempts": "3"}, ["attempts", "live streams"]),
        ({"source": RTSP, "active_hours": "[7-19]"}, ["active_hours", "07:00-19:00"]),
        ({"source": RTSP, "every": "2", "frame_rate": "5"}, ["exclude each other"]),
        ({"source": "'-'", "decode": "process"}, ["decode", "stdin"]),
        ({"source": "{url: 'rtsp://c/1', size: 1x1}"}, ["size is for usb"]),
        ({"source": "{url: 'rtsp://c/1', sise: 1x1}"}, ["sise"]),
        ({"source": "{url: 'usb:0', size: big}"}, ["size"]),
        ({"source": "watch:nowhere"}, ["no such folder", "relative to the configuration file"]),
        ({"source": "192.0.2.1:554/1"}, ["no such file", "its scheme, as in rtsp://"]),
        ({"source": "camera.local:554"}, ["no such file", "its scheme, as in rtsp://"]),
        ({"source": "rtsp://169.254.169.254/x"}, ["access.networks"]),
        ({"source": "rtps://cam/1"}, ["did you mean"]),
    ],
)
def test_sources_that_cannot_be_are_refused(
    tmp_path: Path, toy_pipeline: Path, keys: dict[str, str], wanted: list[str]
) -> None:
    """The message names the key and what would be right, before anything is opened."""
    message = refusal(tmp_path, toy_pipeline, **keys)
    assert all(text in message for text in ["streams[0].", *wanted])


def test_live_streams_can_fall_back_on_a_process(tmp_path: Path, toy_pipeline: Path) -> None:
    """Where threads hang; recordings and streams that have a process already have no need to."""
    assert plan(tmp_path, toy_pipeline, source=RTSP)[0].fallback is not None
    assert plan(tmp_path, toy_pipeline)[0].fallback is None
    assert plan(tmp_path, toy_pipeline, source=RTSP, decode="process")[0].fallback is None


def test_access_is_the_nodes(tmp_path: Path, toy_pipeline: Path) -> None:
    """Schemes and roots of the configuration hold for every stream."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    for access, refused, allowed in (
        ("{schemes: [rtsp]}", "clips/a.mp4", RTSP),
        ("{roots: [clips]}", "b.mp4", "clips/a.mp4"),
    ):
        more = {"shadow": f"0.01\naccess: {access}"}  # the next key at the top
        assert "access." in refusal(tmp_path, toy_pipeline, source=refused, **more)
        assert plan(tmp_path, toy_pipeline, source=allowed, **more)


@pytest.mark.parametrize("source", ["nothing.mp4", "watch:nowhere", "images:nowhere"])
def test_a_source_that_is_not_there_may_come(
    tmp_path: Path, toy_pipeline: Path, source: str
) -> None:
    """A check refuses it, as it may be mistyped; a node plans it, as its disk may come back."""
    assert "no such" in refusal(tmp_path, toy_pipeline, source=source)
    (stream,) = plan_streams(configured(tmp_path, toy_pipeline, source=source), there=False)
    assert not stream.source.live


@pytest.mark.parametrize("url", ["rtsp:/v:${KEY}@cam/1", "v:${KEY}@cam/1", "${KEY}.mp4"])
def test_a_mistyped_source_is_shown_as_it_is_written(
    tmp_path: Path, toy_pipeline: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Not with what the variable stands for."""
    monkeypatch.setenv("KEY", "alpha/omega")
    message = refusal(tmp_path, toy_pipeline, source=f"'{url}'")
    assert "alpha" not in message
    assert "omega" not in message


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (
            "mqtt: {url: mqtts://a, tls: {ca_file: none.pem}}",
            ["line 1, mqtt.tls.ca_file: ", "none.pem: No such file"],
        ),
        (
            "mqtt:\n  url: mqtts://a\n  tls:\n    cert_file: none.pem",
            ["line 4, mqtt.tls.cert_file: ", "none.pem: No such file"],
        ),
        ("results_file: folder", ["line 1, results_file: ", "folder is a folder; name a file"]),
        ("state_file: folder", ["line 1, state_file: ", "folder is a folder; name a file"]),
    ],
)
def test_what_a_node_could_not_begin_with_is_refused(
    tmp_path: Path, toy_pipeline: Path, top: str, expected: list[str]
) -> None:
    """A check opens what `run` would, and says where it is named."""
    (tmp_path / "folder").mkdir()
    document = configured(tmp_path, toy_pipeline)
    document.path.write_text(f"{top}\n{document.path.read_text()}")
    with pytest.raises(ConfigurationError) as caught:
        plan_streams(load_configuration(document.path))
    for part in (str(document.path), *expected):
        assert part in str(caught.value)


def test_a_device_that_is_not_there_may_come(
    tmp_path: Path, toy_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no mistake of the file: whoever supervises the node starts it again."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    document = configured(tmp_path, toy_pipeline)
    for engine in (EngineSection(device="cuda:0"), EngineSection(backend="cuda")):
        value = document.value.model_copy(update={"engine": engine})
        with pytest.raises(OperationError, match="device: 'cuda:0' is not here"):
            plan_streams(replace(document, value=value))
