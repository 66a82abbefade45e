from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamexit.control.dispatch import LARGEST, MOST_WAITING, Dispatcher
from streamexit.control.over_mqtt import MOST_AT_ONCE, MqttCommands
from streamexit.errors import BudgetError, CommandError, OperationError
from streamexit.wire.commands import VERBS, Command
from streamexit.wire.incoming import Incoming
from streamexit.wire.messages import Response
from streamexit.wire.topics import Request, Setting, Topics

Effect = Callable[[str, Command], Awaitable[Any]]


class Recorder:
    """Operations that remember what they were asked for."""

    def __init__(self, effect: Effect | None = None) -> None:
        self.asked: list[tuple[str, Command, str]] = []
        self._effect = effect

    async def carry_out(self, verb: str, command: Command, *, cause: str) -> Any:
        """See `Operations`."""
        self.asked.append((verb, command, cause))
        return await self._effect(verb, command) if self._effect else {"done": verb}


def answer(verb: str, payload: bytes, recorder: Recorder | None = None, **how: Any) -> Response:
    """What the dispatcher says."""
    dispatcher = Dispatcher("lab", recorder or Recorder())
    return asyncio.run(dispatcher.answer(verb, payload, cause="test", **how))


def fault(verb: str, payload: bytes, **how: Any) -> tuple[str, str]:
    """Code and message of an error; nothing must have been done."""
    recorder = Recorder()
    response = answer(verb, payload, recorder, **how)
    assert response.error
    assert recorder.asked == []
    return response.error.code, response.error.message


def test_a_command_reaches_its_effect_and_is_answered() -> None:
    """With the data, and the sender's transaction."""
    recorder = Recorder()
    response = answer(
        "set_budget", b'{"stream": "gate", "budget": 0.4, "transaction": "x1"}', recorder
    )
    assert (response.status, response.data, response.transaction) == (
        "ok",
        {"done": "set_budget"},
        "x1",
    )
    ((verb, command, cause),) = recorder.asked
    assert (verb, cause) == ("set_budget", "test")
    assert command.model_dump()["budget"] == {"fraction": 0.4}


@pytest.mark.parametrize(
    ("verb", "payload", "code", "said"),
    [
        ("explode", b"{}", "unknown_verb", "known are info"),
        ("set_budget", b"not json", "bad_request", "not JSON"),
        ("set_budget", b"[" * 10_000, "bad_request", "not JSON"),
        ("set_budget", b"5", "bad_request", "must be a JSON object"),
        ("set_budget", b"\xff\xfe", "bad_request", "not JSON"),
        ("set_budget", b'{"\\ud800": 1}', "bad_request", "unicode"),
        ("set_budget", b'{"stream": "gate"}', "bad_request", "budget: Field required"),
        ("set_budget", b'{"stream": "gate", "budget": {}}', "bad_request", "give one of fraction"),
        ("set_budget", b'{"stream": "gate", "budget": {"fraction": NaN}}', "bad_request", "budget"),
        ("set_budget", b'{"stream": "gate", "budget": -1}', "bad_request", "greater than 0"),
        ("set_budget", b'{"stream": "gate", "budget": true}', "bad_request", "budget"),
        ("set_budget", b'{"stream": "a/#", "budget": 0.4}', "bad_request", "stream: "),
        ("set_budget", b'{"stream": "g", "budget": 1, "persit": true}', "bad_request", "persit"),
        ("set_frame_rate", b'{"stream": "gate", "frame_rate": 0}', "bad_request", "frame_rate"),
        ("snapshot", b'{"stream": "gate", "width": 1000000}', "bad_request", "width"),
        ("reload", b" " * (LARGEST + 1), "bad_request", "more than the 65536"),
    ],
)
def test_bad_commands(verb: str, payload: bytes, code: str, said: str) -> None:
    """Each is refused with a code for programs and a sentence that names the field."""
    found, message = fault(verb, payload)
    assert found == code
    assert said in message


def test_values_are_not_repeated() -> None:
    """A password in a wrong place must not be published to everybody."""
    _, message = fault("enable_stream", b'{"stream": "gate", "password": "hunter2"}')
    assert "password" in message
    assert "hunter2" not in message


def test_only_what_is_allowed() -> None:
    """And the key that allows it is named."""
    code, message = fault("remove_stream", b'{"stream": "a"}', allowed=["info"])
    assert code == "not_allowed"
    assert "mqtt.commands" in message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("conflict", "it is there"), "conflict"),
        (BudgetError("out of reach"), "invalid"),
        (OperationError("not now"), "unavailable"),
        (ZeroDivisionError("rtsp://me:hunter2@camera"), "internal"),
    ],
)
def test_failures_are_answered(error: Exception, code: str) -> None:
    """Also those that are defects; these do not say what they know."""

    async def fail(verb: str, command: Command) -> None:
        raise error

    response = answer("reload", b'{"transaction": "t"}', Recorder(fail))
    assert response.error
    assert (response.error.code, response.transaction) == (code, "t")
    assert "hunter2" not in response.error.message


@given(verb=st.one_of(st.sampled_from(list(VERBS)), st.text()), payload=st.binary(max_size=200))
def test_whatever_comes_is_answered(verb: str, payload: bytes) -> None:
    """And the answer is a message of the contract."""
    response = answer(verb, payload)
    assert Response.model_validate_json(response.encode()).status in ("ok", "error")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    verb=st.sampled_from(list(VERBS)),
    content=st.dictionaries(
        st.sampled_from(["stream", "budget", "frame_rate", "persist", "transaction", "width", "x"]),
        json_values,
    ),
)
def test_whatever_json_comes_is_answered(verb: str, content: dict[str, Any]) -> None:
    """Likewise."""
    response = answer(verb, json.dumps(content).encode())
    assert Response.model_validate_json(response.encode()).status in ("ok", "error")


def test_changes_come_one_at_a_time_and_not_too_many_wait() -> None:
    """What only asks does not wait for them."""

    async def body() -> None:
        free, running, most = asyncio.Event(), 0, 0

        async def slow(verb: str, command: Command) -> str:
            nonlocal running, most
            if verb != "info":
                running += 1
                most = max(most, running)
                await free.wait()
                running -= 1
            return verb

        dispatcher = Dispatcher("lab", Recorder(slow))
        tasks = [
            asyncio.create_task(dispatcher.answer("reload", {}, cause="test"))
            for _ in range(MOST_WAITING + 3)
        ]
        await asyncio.sleep(0)  # let them begin
        assert (await dispatcher.answer("info", {}, cause="test")).status == "ok"
        free.set()
        answers = await asyncio.gather(*tasks)
        assert most == 1
        codes = [a.error.code for a in answers if a.error]
        assert codes == ["busy"] * 3

    asyncio.run(body())


Replies = list[tuple[str, dict[str, Any], bytes | None]]


def over_mqtt(
    recorder: Recorder, *messages: tuple[Request | Setting, bytes], **how: Any
) -> Replies:
    """Replies to messages."""
    replies: Replies = []

    async def body() -> None:
        commands = MqttCommands(
            Topics("streamexit", "lab"),
            Dispatcher("lab", recorder),
            lambda topic, payload, correlation: replies.append(
                (topic, json.loads(payload), correlation)
            ),
        )
        for asked, payload in messages:
            commands.take(asked, Incoming("a/topic", payload, **how))
        await asyncio.gather(*commands._tasks)

    asyncio.run(body())
    return replies


def test_requests_are_answered_where_it_is_wanted() -> None:
    """On the response topic of the verb, or on the one that MQTT 5's properties name."""
    ask = (Request("info"), b"{}")
    ((topic, content, correlation),) = over_mqtt(Recorder(), ask)
    assert (topic, content["status"], correlation) == ("streamexit/lab/response/info", "ok", None)
    how = {"response_topic": "my/answers", "correlation": b"\x00\x07"}
    ((topic, _, correlation),) = over_mqtt(Recorder(), ask, **how)
    assert (topic, correlation) == ("my/answers", b"\x00\x07")
    for bad in ("a/#", "a/+/b", "$SYS/x", "x" * 2000, "a\0b"):
        ((topic, _, _),) = over_mqtt(Recorder(), ask, response_topic=bad)
        assert topic == "streamexit/lab/response/info"


def test_an_unknown_verb_cannot_choose_its_topic() -> None:
    """Whatever it looks like."""
    ((topic, content, _),) = over_mqtt(Recorder(), (Request("../../x#"), b"{}"))
    assert topic == "streamexit/lab/response/unknown"
    assert content["error"]["code"] == "unknown_verb"


def test_retained_commands_are_ignored() -> None:
    """They would be carried out again at each connection."""
    recorder = Recorder()
    assert over_mqtt(recorder, (Request("reload"), b"{}"), retained=True) == []
    assert recorder.asked == []


@pytest.mark.parametrize(("telling", "count"), [(True, 1), (False, 0)])
def test_what_may_clear_a_retained_command_is_none(telling: bool, count: int) -> None:
    """MQTT 3.1.1 does not say of an empty message whether it is meant to be retained."""
    recorder = Recorder()
    assert len(over_mqtt(recorder, (Request("reload"), b""), telling=telling)) == count
    assert len(recorder.asked) == count


def test_too_many_commands_at_once_are_answered() -> None:
    """With the transaction, and where the answer is wanted: nobody waits in vain."""
    recorder = Recorder()
    asked = [(Request("info"), f'{{"transaction": "{n}"}}'.encode()) for n in range(130)]
    replies = over_mqtt(recorder, *asked, (Request("info"), b"no JSON"), correlation=b"c")
    busy = [content for _, content, _ in replies if content["status"] == "error"]
    assert len(replies) == 131
    assert {content["error"]["code"] for content in busy} == {"busy"}
    assert [content["transaction"] for content in busy] == [*map(str, range(100, 130)), None]
    assert {correlation for _, _, correlation in replies} == {b"c"}
    assert len(recorder.asked) == MOST_AT_ONCE


@pytest.mark.parametrize(
    ("name", "payload", "verb", "content"),
    [
        ("budget", b"0.4", "set_budget", {"budget": {"fraction": 0.4}}),
        ("budget", b'{"gflops_per_frame": 2}', "set_budget", {"budget": {"gflops_per_frame": 2.0}}),
        ("enabled", b"ON", "enable_stream", {}),
        ("enabled", b"off", "disable_stream", {}),
        ("enabled", b"false", "disable_stream", {}),
        ("frame_rate", b"5", "set_frame_rate", {"frame_rate": 5.0}),
        ("frame_rate", b"null", "set_frame_rate", {"frame_rate": None}),
    ],
)
def test_settings_are_commands_in_short(
    name: str, payload: bytes, verb: str, content: dict[str, Any]
) -> None:
    """One value as the payload."""
    recorder = Recorder()
    ((topic, _, _),) = over_mqtt(recorder, (Setting("gate", name), payload))
    assert topic == f"streamexit/lab/response/{verb}"
    ((asked, command, _),) = recorder.asked
    assert asked == verb
    assert {"stream": "gate", **content}.items() <= command.model_dump().items()


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("budget", b"lots"),
        ("enabled", b"maybe"),
        ("frame_rate", b"fast"),
        ("frame_rate", b""),
        ("colour", b"red"),
    ],
)
def test_wrong_settings_are_answered(name: str, payload: bytes) -> None:
    """With an error, and without an effect."""
    recorder = Recorder()
    ((_, content, _),) = over_mqtt(recorder, (Setting("gate", name), payload))
    assert content["status"] == "error"
    assert recorder.asked == []


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("-1", "greater than 0"),
        ("1e999", "budget"),
        ("40", "40 is above 1, which is the full network"),
        ("true", "write a number"),
        ('"0.4"', "write a number"),
        ('{"fraction": 0.4, "gflops_per_frame": 1}', "give one of fraction"),
        ('{"shares": 0.4}', "give one of fraction"),
        ("{}", "give one of fraction"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(budget: str, expected: str) -> None:
    """With what would be right, and before anything is done."""
    code, message = fault("set_budget", f'{{"stream": "a", "budget": {budget}}}'.encode())
    assert code == "bad_request"
    assert expected in message
