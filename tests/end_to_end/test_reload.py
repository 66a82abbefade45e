"""A configuration that is read again is taken over whole, or not at all."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiomqtt
import pytest
import yaml

from streamexit import roster
from streamexit.backends.backend import Backend
from streamexit.config.load import load_configuration
from streamexit.engine.worker import Feed
from streamexit.errors import OperationError, PipelineError
from streamexit.models.pipeline import Pipeline
from streamexit.planning.streams import PlannedStream
from streamexit.roster import Roster
from streamexit.runtime import Node
from streamexit.sinks.mqtt import MqttSession
from streamexit.sources.life import StreamState
from streamexit.sources.sampling import Sampling
from tests.conftest import Mosquitto

TIME_LIMIT = 60


def node_of(path: Path, pipeline: Path, **content: Any) -> Node:
    """A node that is not started."""
    path.write_text(yaml.safe_dump({"pipelines": {"toy": str(pipeline)}, **content}))
    return Node(load_configuration(path), on_problem=lambda sentence: None)


@asynccontextmanager
async def alive(node: Node) -> AsyncIterator[None]:
    """It runs; a test that hangs is a failure."""
    running = asyncio.Event()
    task = asyncio.create_task(node.run(ready=running.set))
    async with asyncio.timeout(TIME_LIMIT):
        await running.wait()
        yield
        node.stop()
        await task


@pytest.mark.parametrize(
    ("mqtt", "waits"),
    [
        (None, False),
        ({"url": "mqtt://127.0.0.1:1"}, True),
        ({"url": "mqtt://127.0.0.1:1", "commands": False}, False),
    ],
)
def test_a_node_that_takes_commands_does_not_end_for_want_of_streams(
    toy_pipeline: Path, tmp_path: Path, mqtt: dict[str, Any] | None, waits: bool
) -> None:
    """Its only camera was switched off: else nobody could switch it on again."""
    stream = {"id": "a", "source": "rtsp://127.0.0.1:1/x", "pipeline": "toy", "enabled": False}
    streams = [{**stream, "budget": {"fraction": 0.7}}]
    node = node_of(tmp_path / "node.yaml", toy_pipeline, mqtt=mqtt, streams=streams)

    async def body() -> None:
        running = asyncio.Event()
        task = asyncio.create_task(node.run(ready=running.set))
        async with asyncio.timeout(TIME_LIMIT):
            await running.wait()
            if waits:  # whatever the node finds now, it would find later
                while node.streams["a"].state.reason != "disabled":  # noqa: ASYNC110 - a thread says so
                    await asyncio.sleep(0)
                assert not node._everything_done()
                node.stop()
            await task

    asyncio.run(body())


def test_a_recording_that_is_switched_off_in_the_file_stops(
    toy_pipeline: Path, tmp_path: Path
) -> None:
    """It cannot be let go of in mid-course: it is opened anew, and not read."""
    path = tmp_path / "node.yaml"
    stream = {"id": "a", "source": "synthetic:frames=1000000", "pipeline": "toy"}
    streams = [{**stream, "budget": {"fraction": 0.7}}]
    mqtt = {"url": "mqtt://127.0.0.1:1"}
    node = node_of(path, toy_pipeline, mqtt=mqtt, streams=streams)

    async def body() -> None:
        async with alive(node):
            path.write_text(path.read_text().replace("id: a", "id: a\n  enabled: false"))
            taken = await node.reload(cause="test")
            assert taken.data["reopened"] == ["a"]
            while node.streams["a"].state.state != "disabled":  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0)

    asyncio.run(body())


def test_what_a_reload_has_applied_takes_no_restart(toy_pipeline: Path, tmp_path: Path) -> None:
    """Pipelines that came, and what sources may reach; a pipeline that another folder stands for does."""
    path = tmp_path / "node.yaml"
    budget = {"budget": {"fraction": 0.7}, "source": "synthetic:frames=1000000"}
    streams = [{"id": "a", "pipeline": "toy", **budget}]
    content = {"mqtt": {"url": "mqtt://127.0.0.1:1"}, "streams": streams}
    node = node_of(path, toy_pipeline, **content)
    (tmp_path / "other").symlink_to(toy_pipeline)

    async def reloaded(**changed: Any) -> dict[str, Any]:
        pipelines = {"toy": str(toy_pipeline), "new": "other"}
        path.write_text(yaml.safe_dump({**content, "pipelines": pipelines, **changed}))
        response = await node.reload(cause="test")
        assert not response.error
        data: dict[str, Any] = response.data
        return data

    async def body() -> None:
        async with alive(node):
            more = [*streams, {"id": "b", "pipeline": "new", **budget}]
            data = await reloaded(streams=more, access={"schemes": ["synthetic"]})
            assert (data["added"], data["needs_restart"]) == (["b"], [])
            assert any("access holds for streams" in said for _, _, said in node.reporter.log)
            data = await reloaded(pipelines={"toy": "other"})
            assert (data["removed"], data["needs_restart"]) == (["b"], ["pipelines"])

    asyncio.run(body())


def test_why_a_camera_is_not_wanted_changes(toy_pipeline: Path, tmp_path: Path) -> None:
    """One that is switched off at night says so, and that it is night once it is switched on again."""
    path, never = tmp_path / "node.yaml", datetime.now(UTC) + timedelta(days=3)
    stream = {"id": "a", "source": "rtsp://127.0.0.1:1/x", "pipeline": "toy", "enabled": True}
    hours = [f"{never:%a} 12:00-12:01".lower()]
    streams = [{**stream, "active_hours": hours, "budget": {"fraction": 0.7}}]
    mqtt, node_section = {"url": "mqtt://127.0.0.1:1"}, {"timezone": "UTC"}
    node = node_of(path, toy_pipeline, mqtt=mqtt, node=node_section, streams=streams)

    async def body() -> None:
        async with alive(node):
            for now, then in (("true", "false"), ("false", "true"), ("true", "true")):
                reason = "inactive_hours" if now == "true" else "disabled"
                while node.streams["a"].state.reason != reason:  # noqa: ASYNC110 - a thread says so
                    await asyncio.sleep(0)
                path.write_text(path.read_text().replace(f"enabled: {now}", f"enabled: {then}"))
                await node.reload(cause="test")

    asyncio.run(body())


def test_a_refused_file_changes_nothing(toy_pipeline: Path, tmp_path: Path) -> None:
    """Not the broker's login either, and what takes a restart is named each time."""
    path = tmp_path / "node.yaml"
    stream = {"id": "a", "source": "synthetic:frames=1000000", "pipeline": "toy"}
    content: dict[str, Any] = {
        "mqtt": {"url": "mqtt://127.0.0.1:1", "username": "old"},
        "pipelines": {"toy": str(toy_pipeline)},
        "streams": [{**stream, "budget": {"fraction": 0.7}}],
    }

    def write(**changes: Any) -> None:
        path.write_text(yaml.safe_dump({**content, **changes}))

    write()
    node = Node(load_configuration(path), on_problem=lambda sentence: None)

    async def body() -> None:
        async with alive(node):
            assert node.session
            new = {"url": "mqtt://127.0.0.1:1", "username": "new"}
            write(mqtt=new, streams=[{**stream, "budget": {"fraction": 0.0001}}])
            refused = await node.reload(cause="test")
            assert refused.error
            assert "out of reach" in refused.error.message
            assert node.session.address.username == "old"
            write(mqtt={**new, "url": "mqtts://127.0.0.1:1", "tls": {"ca_file": "absent.pem"}})
            assert (await node.reload(cause="test")).status == "error"
            assert node.session.address.username == "old"
            for _ in range(2):
                write(mqtt=new, stats_every_s=7.0)
                taken = await node.reload(cause="test")
                assert taken.data["needs_restart"] == ["stats_every_s"]
            assert node.session.address.username == "new"

    asyncio.run(body())


def test_a_frame_rate_in_the_file_is_taken_over(toy_pipeline: Path, tmp_path: Path) -> None:
    """Without opening the source anew; and another one after that."""
    path = tmp_path / "node.yaml"
    stream = {"id": "a", "source": "synthetic:frames=1000000", "pipeline": "toy", "frame_rate": 20}
    streams = [{**stream, "budget": {"fraction": 0.7}}]
    node = node_of(path, toy_pipeline, mqtt={"url": "mqtt://127.0.0.1:1"}, streams=streams)

    async def body() -> None:
        async with alive(node):
            for before, after in ((20, 5), (5, 10)):
                path.write_text(path.read_text().replace(f"rate: {before}", f"rate: {after}"))
                assert not (await node.reload(cause="test")).data["reopened"]
                assert node.streams["a"].demand.sampling == Sampling(after)

    asyncio.run(body())


def test_a_recording_in_a_process_is_told_its_frame_rate_once(
    toy_pipeline: Path, tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    """A command that could change nothing is refused; another rate in the file opens it anew."""
    path, clip = tmp_path / "node.yaml", make_clip("told.mp4", frames=200)
    streams = [{**one, "decode": "process"} for one in sections(a=str(clip))]
    node = node_of(path, toy_pipeline, mqtt=BROKER, streams=streams)

    async def body() -> None:
        async with alive(node):
            assert node.dispatcher
            command = {"stream": "a", "frame_rate": 5}
            refused = await node.dispatcher.answer("set_frame_rate", command, cause="test")
            assert refused.error
            assert refused.error.code == "conflict"
            assert node.streams["a"].frame_rate is None
            rewrite(path, streams=[{**streams[0], "frame_rate": 5}])
            assert (await node.reload(cause="test")).data["reopened"] == ["a"]
            assert node.streams["a"].frame_rate == 5
            assert not (await node.reload(cause="test")).data["reopened"]

    asyncio.run(body())


@pytest.mark.parametrize(
    ("decode", "falls_back", "opened"),
    [("thread", False, 0), ("thread", True, 1), ("process", False, 1)],
)
def test_a_camera_in_a_process_is_opened_anew_for_another_frame_rate(
    toy_pipeline: Path, tmp_path: Path, decode: str, falls_back: bool, opened: int
) -> None:
    """Also one that came into a process because its threads hang."""
    streams = [{**one, "decode": decode} for one in sections(a="rtsp://127.0.0.1:1/x")]
    node = node_of(tmp_path / "node.yaml", toy_pipeline, streams=streams)
    stream, openings = node.streams["a"], list[str]()
    reader: Any = SimpleNamespace(falls_back=falls_back, reopen=lambda: openings.append("another"))
    stream.reader = reader
    node._roster.set_frame_rate(stream, 5.0)
    assert stream.frame_rate == 5.0
    assert len(openings) == opened


def test_a_budget_for_good_is_the_configured_one(toy_pipeline: Path, tmp_path: Path) -> None:
    """Later ones that are not for good outlive a reload, as they do beside the user's own file."""
    node = node_of(tmp_path / "node.yaml", toy_pipeline, mqtt=BROKER, streams=sections(a=SOURCE))

    async def body() -> None:
        async with alive(node):
            assert node.dispatcher
            for budget, persist in ((0.8, True), (0.75, False)):
                command = {"stream": "a", "budget": {"fraction": budget}, "persist": persist}
                assert not (await node.dispatcher.answer("set_budget", command, cause="test")).error
            kept = node.governor.memory_of("a")
            assert (kept["configured"]["amount"], kept["budget"]["amount"]) == (0.8, 0.75)
            assert (await node.reload(cause="test")).data["from_overlay"]
            assert node.governor.budget("a").amount == 0.75

    asyncio.run(body())


def test_a_stream_that_was_removed_is_not_remembered(toy_pipeline: Path, tmp_path: Path) -> None:
    """Another of its name has the budget that it asks for; so has one that a reload took away."""
    path, streams = tmp_path / "node.yaml", sections(a=SOURCE, b=SOURCE)
    node = node_of(path, toy_pipeline, mqtt=BROKER, streams=streams)

    async def body() -> None:
        async with alive(node):
            assert node.dispatcher
            for verb, content in (
                ("set_budget", {"stream": "a", "budget": 0.9}),
                ("set_budget", {"stream": "b", "budget": 0.9}),
                ("remove_stream", {"stream": "a"}),
                ("add_stream", {"stream": streams[0]}),
            ):
                assert not (await node.dispatcher.answer(verb, content, cause="test")).error
            for there in (streams[:1], streams):
                rewrite(path, streams=there)
                await node.reload(cause="test")
            assert [node.governor.budget(name).amount for name in "ab"] == [0.7, 0.7]

    asyncio.run(body())


def test_adding_a_stream_is_compared_with_what_was_read_last(
    toy_pipeline: Path, tmp_path: Path
) -> None:
    """A budget that a reload changed in passing belongs to the stream from then on."""
    path = tmp_path / "node.yaml"
    stream = {"id": "a", "source": "synthetic:frames=1000000", "pipeline": "toy"}
    old, new = ({**stream, "budget": {"fraction": fraction}} for fraction in (0.7, 0.9))
    node = node_of(path, toy_pipeline, mqtt={"url": "mqtt://127.0.0.1:1"}, streams=[old])

    async def body() -> None:
        async with alive(node):
            assert node.dispatcher
            path.write_text(path.read_text().replace("0.7", "0.9"))
            assert not (await node.reload(cause="test")).data["reopened"]
            for section, error in ((new, None), (old, "conflict")):
                added = await node.dispatcher.answer(
                    "add_stream", {"stream": section}, cause="test"
                )
                assert (added.error.code if added.error else None) == error

    asyncio.run(body())


def test_a_stream_that_is_opened_anew_keeps_its_budget_and_hears_no_ghosts(
    toy_pipeline: Path, tmp_path: Path
) -> None:
    """What a command set holds, and what the former reader still says is not the new one's state."""
    path = tmp_path / "node.yaml"
    stream = {"id": "a", "source": "synthetic:frames=1000000", "pipeline": "toy"}
    streams = [{**stream, "budget": {"fraction": 0.7}}]
    node = node_of(path, toy_pipeline, mqtt={"url": "mqtt://127.0.0.1:1"}, streams=streams)

    async def body() -> None:
        async with alive(node):
            assert node.dispatcher
            command = {"stream": "a", "budget": 0.6}
            assert not (await node.dispatcher.answer("set_budget", command, cause="test")).error
            former = node.streams["a"]
            path.write_text(path.read_text().replace("frames=", "seed=1,frames="))
            assert (await node.reload(cause="test")).data["reopened"] == ["a"]
            assert node.streams["a"] is not former
            assert node.governor.budget("a").amount == 0.6
            node._change_state(
                "a", former.reader, StreamState("error", "ghost", "of a former reader")
            )
            assert node.streams["a"].state.reason != "ghost"
            reader = node.streams["a"].reader
            node._change_state("a", reader, StreamState("error", "broken", "of the present one"))
            assert node.streams["a"].state.reason == "broken"

    asyncio.run(body())


SOURCE = "synthetic:frames=1000000"
BROKER = {"url": "mqtt://127.0.0.1:1"}


def sections(**sources: str) -> list[dict[str, Any]]:
    """Streams by id."""
    rest = {"pipeline": "toy", "budget": {"fraction": 0.7}}
    return [{"id": name, "source": source, **rest} for name, source in sources.items()]


def rewrite(path: Path, **changes: Any) -> None:
    """Another content of some keys of the file."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


@pytest.mark.broker
def test_a_reload_that_changes_the_login_is_answered(
    mosquitto: Mosquitto, toy_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the connection that asked for it is gone by the time that streams have been opened."""
    attach = Roster.attach

    async def attach_late(roster: Roster, plan: PlannedStream) -> str:
        while session().connected:  # noqa: ASYNC110 - it knows no event for that
            await asyncio.sleep(0)
        return await attach(roster, plan)

    monkeypatch.setattr(Roster, "attach", attach_late)
    path, mqtt = tmp_path / "node.yaml", {"url": mosquitto.url}
    node = node_of(path, toy_pipeline, node={"id": "n"}, mqtt=mqtt, streams=sections(a=SOURCE))

    def session() -> MqttSession:
        assert node.session
        return node.session

    async def body() -> None:
        async with alive(node), aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
            await session().attempted.wait()
            await client.subscribe("streamexit/n/response/reload", qos=1)
            login = {"username": "other", "password": "x"}
            rewrite(path, mqtt={**mqtt, **login}, streams=sections(a=SOURCE, b=SOURCE))
            await client.publish("streamexit/n/request/reload", "{}", qos=1)
            answer = await anext(aiter(client.messages))
            assert json.loads(answer.payload)["data"]["added"] == ["b"]
            assert session().connections == 2

    asyncio.run(body())


def test_a_network_that_cannot_be_opened_leaves_every_stream_alone(
    toy_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that the file changes, and that need no other network."""
    path, other = tmp_path / "node.yaml", shutil.copytree(toy_pipeline, tmp_path / "other")
    before = sections(a=SOURCE, b=SOURCE)
    node = node_of(path, toy_pipeline, mqtt=BROKER, streams=before)

    def fails(pipeline: Pipeline, *args: Any, **options: Any) -> Backend:
        raise PipelineError(f"{pipeline.name}: no space left on the device")

    async def body() -> None:
        async with alive(node):
            streams = dict(node.streams)
            monkeypatch.setattr(roster, "open_backend", fails)
            a, b = sections(a=SOURCE, b=f"{SOURCE},seed=1")
            pipelines = {"toy": str(toy_pipeline), "other": str(other)}
            rewrite(path, pipelines=pipelines, streams=[{**a, "pipeline": "other"}, b])
            refused = await node.reload(cause="test")
            assert refused.error
            assert "no space left" in refused.error.message
            assert dict(node.streams) == streams

    asyncio.run(body())


@pytest.mark.parametrize("error", [OperationError("it stays"), RuntimeError("a defect")])
def test_a_stream_that_does_not_leave_the_engine_stops_no_other(
    toy_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is named as a problem, the others change, and the next reload finds it."""
    path = tmp_path / "node.yaml"
    node = node_of(path, toy_pipeline, mqtt=BROKER, streams=sections(a=SOURCE, b=SOURCE))

    async def body() -> None:
        async with alive(node):
            former, remove = node.streams["a"].feed, node._worker.remove

            def stays(feed: Feed) -> bool:
                if feed is former:
                    raise error
                return remove(feed)

            monkeypatch.setattr(node._worker, "remove", stays)
            changed = f"{SOURCE},seed=1"
            rewrite(path, streams=sections(a=changed, b=changed, c=SOURCE))
            taken = (await node.reload(cause="test")).data
            assert (taken["reopened"], taken["added"]) == (["b"], ["c"])
            assert len(taken["problems"]) == 1
            monkeypatch.undo()
            assert (await node.reload(cause="test")).data["reopened"] == ["a"]

    asyncio.run(body())


def test_a_recording_that_has_been_deleted_spoils_no_reload(
    toy_pipeline: Path, tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    """It has been played, and the file still names it."""
    path, clip = tmp_path / "node.yaml", tmp_path / "clip.mp4"
    shutil.copy(make_clip("reloaded.mp4", frames=3), clip)
    node = node_of(path, toy_pipeline, mqtt=BROKER, streams=sections(a=str(clip), b=SOURCE))

    async def body() -> None:
        async with alive(node):
            while not node.streams["a"].finished:  # noqa: ASYNC110 - a thread says so
                await asyncio.sleep(0)
            clip.unlink()
            rewrite(path, streams=sections(a=str(clip), b=SOURCE, c=SOURCE))
            taken = await node.reload(cause="test")
            assert taken.data["added"] == ["c"]
            assert not taken.data["reopened"]

    asyncio.run(body())


def test_a_node_ends_while_a_network_is_being_opened(
    toy_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion may take minutes, which nobody who stops a node waits for; later commands are refused."""
    other = shutil.copytree(toy_pipeline, tmp_path / "other")
    pipelines = {"toy": str(toy_pipeline), "other": str(other)}
    streams = sections(a=SOURCE)
    node = node_of(
        tmp_path / "node.yaml", toy_pipeline, mqtt=BROKER, streams=streams, pipelines=pipelines
    )
    begun, released, waited_for = (threading.Event() for _ in range(3))

    def slowly(*args: Any, **options: Any) -> Backend:
        begun.set()
        if not released.wait(TIME_LIMIT):
            waited_for.set()
        raise PipelineError("too late")

    async def body() -> None:
        async with alive(node):
            assert node.dispatcher
            monkeypatch.setattr(roster, "open_backend", slowly)
            section = {**sections(x=SOURCE)[0], "pipeline": "other"}
            asking = node.dispatcher.answer("add_stream", {"stream": section}, cause="test")
            asked = asyncio.create_task(asking)
            await asyncio.to_thread(begun.wait)
        assert not asked.done()
        asked.cancel()
        late = await node.dispatcher.answer("remove_stream", {"stream": "a"}, cause="test")
        assert late.error
        assert late.error.message == "the node is being stopped"

    asyncio.run(body())
    assert not waited_for.is_set()
    released.set()
