from __future__ import annotations

from streamexit.health import PATIENCE_SECONDS, Health, Pulse


class Patient:
    """Somebody whose pulse is taken once a second."""

    def __init__(self) -> None:
        self.health = Health()
        self.now = 1000.0
        self.frames = self.answered = self.waiting = self.confirmed = self.seen = 0
        self.offered = 0
        self.held, self.broker = False, ""

    def live(
        self,
        seconds: float,
        *,
        come: int,
        leave: int,
        send: int = 0,
        confirm: int = 0,
        refuse: int = 0,
        drop: int = 0,
    ) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self.seen += come
            self.frames += come - drop
            self.answered += leave
            self.offered += send
            self.waiting += send - confirm - refuse
            self.confirmed += confirm
            pulse = Pulse(
                self.frames,
                self.answered,
                self.seen,
                self.held,
                self.offered,
                self.waiting,
                self.confirmed,
                self.broker,
            )
            self.health.look(pulse, self.now)


LONG = PATIENCE_SECONDS + 3


def test_a_node_that_has_just_begun_is_not_ready() -> None:
    """And is, once it has been looked at twice: one look shows no movement."""
    patient = Patient()
    assert patient.health.not_ready
    patient.live(1, come=10, leave=10)
    assert patient.health.not_ready
    patient.live(1, come=10, leave=10)
    assert patient.health.not_ready == ""


def test_frames_that_are_not_answered_are_noticed() -> None:
    """But not before patience is over; an answer ends it."""
    patient = Patient()
    patient.live(5, come=10, leave=10)
    patient.live(PATIENCE_SECONDS - 1, come=10, leave=0)
    assert patient.health.stuck == ""
    patient.live(4, come=10, leave=0)
    assert "none was answered" in patient.health.stuck
    assert patient.health.not_ready == patient.health.stuck
    patient.live(1, come=10, leave=1)
    assert (patient.health.stuck, patient.health.not_ready) == ("", "")


def test_a_node_without_frames_is_well() -> None:
    """Cameras may be off at night."""
    patient = Patient()
    patient.live(5, come=10, leave=10)
    patient.live(10 * LONG, come=0, leave=0)
    assert (patient.health.stuck, patient.health.not_ready) == ("", "")


def test_a_broker_that_is_away_is_no_reason_to_restart() -> None:
    """Nobody should rely on the node, but it works."""
    patient = Patient()
    patient.broker = "connection refused"
    patient.live(LONG, come=10, leave=10)
    assert patient.health.not_ready == "no results go out: connection refused"
    assert patient.health.stuck == ""
    patient.broker = ""
    patient.live(1, come=10, leave=10)
    assert patient.health.not_ready == ""


def test_a_broker_that_confirms_nothing_is_noticed() -> None:
    """Connected or not."""
    patient = Patient()
    patient.live(LONG, come=10, leave=10, send=10, confirm=10)
    patient.live(LONG, come=10, leave=10, send=10, confirm=0)
    assert patient.health.not_ready == "no results go out: the broker confirms none"
    patient.live(1, come=10, leave=10, send=10, confirm=1)
    assert patient.health.not_ready == ""


def test_a_broker_that_refuses_everything_is_noticed() -> None:
    """Though nothing waits for it any more."""
    patient = Patient()
    patient.live(LONG, come=10, leave=10, send=10, refuse=10)
    assert patient.health.not_ready == "no results go out: the broker confirms none"
    patient.live(LONG, come=10, leave=10)  # nothing changes that is to be published
    assert patient.health.not_ready == ""


def test_recordings_that_are_held_back_are_no_reason_to_restart() -> None:
    """A broker that takes results too slowly is not mended by that; but nobody should rely on the node."""
    patient = Patient()
    patient.live(5, come=10, leave=10)
    patient.held = True
    patient.live(5, come=10, leave=10)
    patient.live(LONG, come=1, leave=0)
    assert patient.health.stuck == ""
    assert patient.health.not_ready == "no results go out: the broker takes them too slowly"
    patient.held = False
    patient.live(PATIENCE_SECONDS - 1, come=1, leave=0)
    assert patient.health.stuck == ""
    patient.live(5, come=1, leave=0)
    assert patient.health.stuck


def test_recordings_that_are_held_back_now_and_then_are_well() -> None:
    """They are read faster than results can go out: that is what holding them back is for."""
    patient = Patient()
    patient.held = True
    patient.live(LONG, come=10, leave=1, send=1, confirm=1)
    assert (patient.health.stuck, patient.health.not_ready) == ("", "")


def test_a_node_that_drops_every_frame_is_not_ready() -> None:
    """It is overloaded, not stuck; once one is answered, or none come any more, it is well."""
    for come, leave, drop in ((10, 1, 9), (0, 0, 0)):
        patient = Patient()
        patient.live(5, come=10, leave=10)
        patient.live(LONG, come=10, leave=0, drop=10)
        assert patient.health.stuck == ""
        assert patient.health.not_ready == "no frame is answered: all that come in are dropped"
        patient.live(LONG, come=come, leave=leave, drop=drop)
        assert patient.health.not_ready == ""


def test_a_frame_that_vanishes_is_not_waited_for() -> None:
    """Its stream was removed, or it was dropped in the end: nothing is stuck."""
    for after in (Pulse(0, 0), Pulse(100, 100)):
        health = Health()
        health.look(Pulse(100, 100), 0.0)
        health.look(Pulse(101, 100), 1.0)
        for second in range(2, 40):
            health.look(after, float(second))
        assert health.stuck == ""
