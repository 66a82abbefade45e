"""The life of a stream, step by step, under a clock that goes when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamexit.errors import SourceError
from streamexit.metrics import StreamCounters
from streamexit.queues import FrameBuffer
from streamexit.sources.life import FINAL, REASONS, TRANSITIONS, Patience, StreamState, retry_pause
from streamexit.sources.reader import MOST_HUNG, Reader
from streamexit.sources.source import DropReport, Picture, Watch
from streamexit.testing import ManualClock, toy_pictures

PATIENCE = 20.0


SIGNS: dict[str, Callable[[Watch], None]] = {
    "alive": Watch.alive,
    "idle": lambda watch: watch.wait_idly(0.0),
    "in trouble": lambda watch: watch.wait_idly(0.0, SourceError("gone", reason="not_found")),
}


class Puppet:
    """A live source whose openings do what the test says, one command at a time."""

    def __init__(self, *, live: bool = True, obedient: bool = True) -> None:
        self.live = live
        self.openings = 0
        self._obedient = obedient
        self._commands: list[str | SourceError] = []
        self._changed = threading.Condition()
        self._idle = 0
        self._stopped: set[int] = set()

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`."""
        assert watch
        self.openings += 1
        number = self.openings
        if self._obedient:
            watch.on_stop(lambda: self._stop(number))
        [picture] = toy_pictures(1)
        pts = 0.0
        while True:
            command = self._next(number)
            if isinstance(command, SourceError):
                raise command
            if command in ("end", "stop"):
                return
            if command == "lose":
                report("decode_error")
            elif command in SIGNS:
                SIGNS[command](watch)
            else:
                pts += 0.04
                yield Picture(picture.image, pts, epoch=int(command == "picture of a new clock"))

    def then(self, *commands: str | SourceError) -> None:
        """Tell the opening what to do next."""
        with self._changed:
            self._commands += commands
            self._changed.notify_all()

    def _stop(self, number: int) -> None:
        with self._changed:
            self._stopped.add(number)
            self._changed.notify_all()

    def until_idle(self, hanging: int = 1) -> None:
        """Wait until every command is done and so many openings wait for another."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: not self._commands and self._idle == hanging, PATIENCE
            )

    def _next(self, number: int) -> str | SourceError:
        with self._changed:
            self._idle += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._commands or number in self._stopped, PATIENCE)
            self._idle -= 1
            self._changed.notify_all()
            return "stop" if number in self._stopped else self._commands.pop(0)


@dataclass
class Life:
    """A reader of a puppet, under a clock of the test."""

    source: Puppet = field(default_factory=Puppet)
    patience: Patience = field(default_factory=Patience)
    fallback: Puppet | None = None
    said: list[StreamState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.buffer = FrameBuffer(capacity=50, live=self.source.live, counters=StreamCounters())
        self.reader = Reader(
            "cam",
            self.source,
            self.buffer,
            on_state=self._note,
            patience=self.patience,
            clock=self.clock,
            wall_clock=self.clock,
            chance=lambda: 0.0,
            max_age=2.0,
            fallback=self.fallback,
            await_missing=True,
        )

    def _note(self, state: StreamState) -> None:
        self.said.append(state)

    def pass_time(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass, looking after the source."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.reader.tick()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for another thread."""
        waiting = threading.Event()
        for _ in range(2000):
            if condition():
                return
            waiting.wait(0.01)
        raise AssertionError(self.said)

    @property
    def states(self) -> list[tuple[str, str]]:
        """State and reason of each change."""
        return [(state.state, state.reason) for state in self.said]


@pytest.fixture
def life() -> Iterator[Life]:
    """A stream that is online."""
    alive = Life()
    alive.reader.start()
    alive.source.then("picture")
    alive.source.until_idle()
    yield alive
    alive.reader.stop()
    alive.buffer.close()
    assert alive.reader.join(PATIENCE)


def lost(reason: str = "connection_lost") -> SourceError:
    """A camera that goes away."""
    return SourceError("away", reason=reason)


def test_the_table_of_transitions_is_whole() -> None:
    """Every state is known, final ones lead nowhere, and the others somewhere."""
    assert {after for afters in TRANSITIONS.values() for after in afters} <= TRANSITIONS.keys()
    assert {state for state, afters in TRANSITIONS.items() if not afters} == FINAL


@pytest.fixture
def recording() -> Iterator[Life]:
    """One that has been asked for."""
    life = Life(Puppet(live=False))
    life.reader.start()
    yield life
    life.reader.stop()
    life.buffer.close()
    assert life.reader.join(PATIENCE)


def test_a_recording_that_is_not_there_is_tried_again(recording: Life) -> None:
    """Its disk may come back; meanwhile nobody waits for it."""
    recording.source.then(lost("not_found"))
    recording.until(lambda: recording.reader.state.state == "offline")
    assert recording.buffer.exhausted
    recording.pass_time(1.0)
    recording.source.then("picture", "end")
    recording.until(lambda: recording.reader.state.final)
    assert recording.states == [
        ("connecting", ""),
        ("offline", "not_found"),
        ("online", ""),
        ("ended", "end_of_stream"),
    ]
    assert recording.buffer.take()


def test_a_recording_that_never_came_is_in_error(recording: Life) -> None:
    """Once the node is stopped; nothing else is tried again."""
    recording.source.then(lost("not_found"))
    recording.until(lambda: recording.reader.state.state == "offline")
    recording.reader.stop()
    assert recording.states[-1] == ("error", "not_found")
    other = Life(Puppet(live=False))
    other.reader.start()
    other.source.then(lost("not_permitted"))
    other.until(lambda: other.reader.state.final)
    assert other.states[-1] == ("error", "not_permitted")


def test_a_source_with_nothing_to_play_is_online(recording: Life) -> None:
    """A watched folder that is empty is as it should be; one that cannot be read is not, and is once it can."""
    for command, state in (
        ("in trouble", ("stalled", "not_found")),
        ("idle", ("online", "")),
        ("in trouble", ("stalled", "not_found")),
        ("picture", ("online", "")),
    ):
        recording.source.then(command)
        recording.source.until_idle()
        recording.reader.tick()
        assert recording.states[-1] == state


def test_a_stream_that_is_lost_and_found(life: Life) -> None:
    """Online, lost, an attempt that fails, one that succeeds; each with its reason."""
    life.source.then(lost())
    life.until(lambda: life.reader.state.state == "reconnecting")
    life.pass_time(0.6)
    life.source.until_idle()
    life.source.then(lost("refused"))
    life.until(lambda: life.reader.state.state == "offline")
    life.pass_time(0.6)
    life.source.then("picture")
    life.source.until_idle()
    assert life.states == [
        ("connecting", ""),
        ("online", ""),
        ("reconnecting", "connection_lost"),
        ("offline", "refused"),
        ("online", ""),
    ]
    frames = [life.buffer.take(), life.buffer.take()]
    assert [f.info.epoch for f in frames if f] == [0, 1]  # the attempt that failed does not count
    assert life.buffer.counters.reconnects == 1


def test_a_silent_source_is_stalled_then_given_up_for_a_new_one(life: Life) -> None:
    """No picture for 3 s, then for 10 s: the thread that hangs is left behind and counted."""
    life.pass_time(2.9)
    assert life.reader.state.state == "online"
    life.pass_time(0.3)
    assert life.states[-1] == ("stalled", "timeout")
    life.pass_time(7.0)
    assert life.states[-1] == ("reconnecting", "timeout")
    assert life.buffer.counters.abandoned == 1
    life.pass_time(0.6)
    life.source.then("picture")
    life.until(lambda: life.reader.state.state == "online")


def test_a_source_is_opened_anew_when_asked(life: Life) -> None:
    """At once, and the frames that follow are of another epoch."""
    assert life.source.openings == 1
    life.reader.reopen()
    life.until(lambda: life.source.openings == 2)
    life.source.then("picture")
    life.until(lambda: life.reader.epoch == 1)
    assert life.reader.state.state == "online"


def test_a_stalled_stream_that_goes_on_is_online_again(life: Life) -> None:
    """A picture ends the silence; nothing is opened anew."""
    life.pass_time(4.0)
    life.source.then("picture")
    life.until(lambda: life.reader.state.state == "online")
    assert life.source.openings == 1
    assert life.buffer.counters.abandoned == 0


def test_silence_with_lost_frames_says_so(life: Life) -> None:
    """Data that cannot be decoded is told apart from no data."""
    life.source.then("lose", "lose")
    life.source.until_idle()
    life.pass_time(3.5)
    assert life.states[-1] == ("stalled", "decode_errors")
    assert life.buffer.counters.dropped == {"decode_error": 2}
    life.pass_time(7.0)
    assert life.states[-1] == ("reconnecting", "decode_errors")


def test_frames_that_are_left_out_on_purpose_are_signs_of_life(life: Life) -> None:
    """A stream of which a frame is wanted once in a minute is not stalled meanwhile."""
    for _ in range(20):
        life.pass_time(2.5)
        life.source.then("alive")
        life.source.until_idle()
    assert life.states[-1] == ("online", "")


def test_hanging_threads_are_bounded() -> None:
    """Three that hang for good, and no fourth is risked; when one returns, it goes on."""
    life = Life(source=Puppet(obedient=False))
    life.reader.start()
    for hanging in range(1, MOST_HUNG + 1):
        life.source.until_idle(hanging)
        life.pass_time(12.0)
    assert life.states[-1] == ("offline", "hung")
    assert "3 decode threads hang" in life.said[-1].message
    life.pass_time(600.0, step=1.0)
    assert life.source.openings == MOST_HUNG == life.reader.hung
    life.source.then("end")
    life.until(lambda: life.reader.hung < MOST_HUNG)
    life.pass_time(0.1)
    life.until(lambda: life.source.openings == MOST_HUNG + 1)
    life.source.then(*["end"] * 3)
    life.until(lambda: life.reader.hung == 0)
    life.reader.stop()


def test_a_stream_whose_threads_hang_goes_on_in_a_way_that_can_be_ended() -> None:
    """With something to fall back on, three hanging threads do not end a stream."""
    life = Life(source=Puppet(obedient=False), fallback=Puppet())
    life.reader.start()
    for hanging in range(1, MOST_HUNG + 1):
        life.source.until_idle(hanging)
        life.pass_time(12.0)
    assert life.fallback
    life.fallback.then("picture")
    life.until(lambda: life.reader.state.state == "online")
    assert (life.source.openings, life.fallback.openings) == (MOST_HUNG, 1)
    assert life.reader.falls_back
    life.source.then(*["end"] * MOST_HUNG)
    life.until(lambda: life.reader.hung == 0)
    life.fallback.then(lost())
    life.until(lambda: life.reader.state.state == "reconnecting")
    life.pass_time(5.0)
    life.source.until_idle()
    assert life.source.openings == MOST_HUNG + 1  # and then as before
    assert not life.reader.falls_back
    life.reader.stop()
    life.source.then("end")


def test_what_an_abandoned_thread_still_brings_is_not_taken() -> None:
    """A thread that wakes up after its replacement began adds no frame and no count."""
    life = Life(source=Puppet(obedient=False))
    life.reader.start()
    life.source.then("picture")
    life.source.until_idle()
    life.pass_time(11.0)
    life.pass_time(1.0)
    life.source.until_idle(hanging=2)
    life.source.then("picture", "lose", "picture")  # whichever of the two takes them
    life.until(lambda: life.reader.hung == 0 or life.buffer.counters.frames >= 3)
    counters = life.buffer.counters
    frames = [frame.info for frame in iter(life.buffer.take, None)]
    assert counters.frames == len(frames) + counters.dropped.total()
    assert [f.index for f in frames] == list(range(len(frames)))
    assert all(a.pts_seconds < b.pts_seconds for a, b in pairwise(frames))
    life.reader.stop()
    life.source.then("end", "end")


def test_a_stream_is_given_up_only_if_told_so() -> None:
    """After so many failed attempts in a row it is in error, which is final."""
    life = Life(patience=Patience(attempts=3))
    life.reader.start()
    for _ in range(3):
        life.source.then(lost("refused"))
        life.source.until_idle(0)
        life.until(lambda: life.reader.retry_in is not None or life.reader.state.final)
        life.pass_time(1.0)
    assert life.states[-1] == ("error", "refused")
    assert "3 attempts" in life.said[-1].message
    assert life.buffer.exhausted


def test_what_is_secret_in_an_error_is_not_told(life: Life) -> None:
    """Whatever brought it there: a plugin, or a playlist that leads elsewhere."""
    life.source.then(SourceError("leads to http://u:alpha@cam/1?pw=omega", reason="refused"))
    life.until(lambda: life.reader.state.state == "reconnecting")
    assert life.said[-1].message == "stream cam: leads to http://***@cam/1?pw=***"


def test_disabling_lets_go_and_enabling_begins_anew(life: Life) -> None:
    """A disabled stream keeps no connection and is not retried; frames go on in a new epoch."""
    life.reader.disable("inactive_hours", "night")
    life.source.until_idle(0)
    life.pass_time(100.0, step=1.0)
    assert life.source.openings == 1
    assert life.states[-1] == ("disabled", "inactive_hours")
    life.reader.enable()
    life.source.then("picture")
    life.until(lambda: life.reader.state.state == "online")
    assert [s for s, _ in life.states[-3:]] == ["disabled", "connecting", "online"]
    frames = [frame.info for frame in iter(life.buffer.take, None)]
    assert [f.epoch for f in frames] == [0, 1]


def test_a_source_that_breaks_again_and_again_is_tried_less_often(life: Life) -> None:
    """Two pictures and it breaks: pauses grow all the same. Once it was well, they begin anew."""
    pauses = []
    for _ in range(40):
        life.source.then(lost())
        life.until(lambda: life.reader.state.state == "reconnecting")
        pauses.append(life.reader.retry_in or 0.0)
        life.pass_time(pauses[-1] + 0.2)
        life.source.then("picture", "picture")
        life.until(lambda: life.reader.state.state == "online")
        life.source.until_idle()
    assert pauses[0] == pytest.approx(0.5)
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2.0
    for _ in range(3):
        life.pass_time(2.9)
        life.source.then("picture")
        life.source.until_idle()
    life.source.then(lost())
    life.until(lambda: life.reader.state.state == "reconnecting")
    assert life.reader.retry_in == pytest.approx(0.5)


def test_a_clock_that_is_set_within_an_opening_is_an_epoch(life: Life) -> None:
    """Epochs count resets of the source's clock as well as reconnections."""
    life.source.then("picture of a new clock")
    life.source.until_idle()
    life.source.then(lost())
    life.until(lambda: life.reader.state.state == "reconnecting")
    life.pass_time(0.6)
    life.source.then("picture")
    life.source.until_idle()
    frames = [frame.info for frame in iter(life.buffer.take, None)]
    assert [f.epoch for f in frames] == [0, 1, 2]


def test_a_recording_that_hangs_is_an_error() -> None:
    """A file on a disk that does not answer ends in an error, after a patience six times as long."""
    life = Life(source=Puppet(live=False))
    life.reader.start()
    life.source.then("picture")
    life.source.until_idle()
    life.pass_time(59.0, step=1.0)
    assert life.states[-1] == ("online", "")
    life.pass_time(2.0)
    assert life.states[-1] == ("error", "timeout")
    assert life.buffer.counters.abandoned == 1


def test_every_frame_knows_when_its_answer_gets_too_old(life: Life) -> None:
    """Two seconds after it was taken."""
    frame = life.buffer.take()
    assert frame
    assert frame.info.captured_at == 1000.0
    assert frame.info.expires_at == 1002.0


@given(away=st.floats(0, 1e6), chance=st.floats(0, 1, exclude_max=True))
def test_pauses_grow_with_the_absence_between_their_limits(away: float, chance: float) -> None:
    """At least half of the shortest, at most the longest; an outage is prolonged by a tenth at most."""
    pause = retry_pause(Patience(), away, chance)
    assert 0.25 <= pause <= 30.0
    assert pause <= max(0.5, 0.1 * away)
    assert retry_pause(Patience(), away, 0.0) >= pause


def test_every_reason_is_documented() -> None:
    """Whoever reads a status finds its reason in the table of docs/sources.md."""
    from tests.conftest import ROOT

    page = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    assert [reason for reason in REASONS if reason and f"`{reason}`" not in page] == []
