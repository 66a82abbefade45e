from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamexit.budget.controller import BudgetController
from streamexit.budget.research import FEWEST
from streamexit.budget.shadow import GRID, ShadowFrame, ShadowLog
from streamexit.budget.sharing import Admission, DeviceShare
from streamexit.budget.terms import Terms
from streamexit.errors import BudgetError
from streamexit.exits import Budget
from streamexit.governor.governor import Governor
from streamexit.governor.state_file import StateFile
from streamexit.metrics import StreamCounters
from streamexit.planning.streams import PlannedStream
from streamexit.testing import ManualClock
from tests.budget.rig import play, uniform
from tests.test_planning import plan


class AtOnce:
    """A worker that does what it is asked at once, and may break."""

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """See `EngineWorker.call`."""
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass
class Rig:
    """A governor of streams that nobody reads."""

    one: PlannedStream
    share: DeviceShare | None = None
    file: StateFile | None = None
    told: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    streams: dict[str, Any] = field(default_factory=dict)
    lanes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wall_clock = ManualClock()
        worker: Any = AtOnce()
        self.governor = Governor(
            worker,
            share=self.share,
            file=self.file,
            on_problem=self.problems.append,
            on_change=lambda *change: self.told.append(change),
            wall_clock=self.wall_clock,
        )

    def attach(self, name: str, **changed: Any) -> str:
        """Another stream like the first; why it may not run."""
        section = self.one.section.model_copy(update={"id": name})
        its = replace(self.one, section=section, **changed)
        self.streams[name] = SimpleNamespace(
            id=name,
            plan=its,
            section=section,
            state=SimpleNamespace(reason=""),
            finished=False,
            counters=StreamCounters(),
        )
        self.lanes[name] = SimpleNamespace(
            shadow=ShadowLog(), controller=BudgetController(its.table, its.terms)
        )
        return self.governor.attach(self.streams[name], self.lanes[name])

    def show(self, name: str, count: int, budget: float = 0.6) -> None:
        """Shadow frames of a stream, every second of which needs the last exit."""
        for i in range(count):
            agreement = (1.0, 1.0, 1.0) if i % 2 else (0.0, 0.0, 1.0)
            scores = (0.9, 0.9, 0.99) if i % 2 else (0.1 + i / 10_000, 0.2, 0.99)
            self.lanes[name].shadow.add(
                ShadowFrame(
                    scores, agreement, 0, (0,) * (GRID // 2) + (2,) * (GRID - GRID // 2), budget
                )
            )

    def held(self, name: str) -> Terms:
        """By the controller."""
        terms: Terms = self.lanes[name].controller.terms
        return terms


@pytest.fixture
def one(tmp_path: Path, toy_pipeline: Path) -> PlannedStream:
    """A stream at 60%, 25 frames per second."""
    return plan(tmp_path, toy_pipeline)[0]


def shared(one: PlannedStream, frames_per_second: float) -> DeviceShare:
    """A device with time for so many frames of the full network."""
    return DeviceShare(frames_per_second * one.costs.full)


def test_a_budget_that_is_changed_is_held_and_told(one: PlannedStream) -> None:
    """With its cause and the time of day; what cannot be had changes nothing."""
    rig = Rig(one)
    assert rig.attach("a") == ""
    rig.wall_clock.now = 3600.0
    rig.governor.set_budget("a", Budget(0.8), cause="by a test")
    said = "budget fraction=0.6 -> fraction=0.8: by a test"
    assert rig.told == [("a", said)]
    view = rig.governor.view("a")
    assert (view.last_change, view.changed_at) == (said, "1970-01-01T01:00:00.000Z")
    for name, budget in (
        ("a", Budget(1e-6)),
        ("a", Budget(5, "milliseconds_per_frame")),
        ("z", Budget(0.5)),
    ):
        with pytest.raises(BudgetError):
            rig.governor.set_budget(name, budget, cause="by a test")
    assert rig.held("a").amount == rig.governor.terms("a").amount == 0.8
    assert rig.governor.budget("a") == Budget(0.8)
    rig.governor.set_budget("a", Budget(0.8), cause="by a test")
    assert len(rig.told) == 1


def test_a_device_is_shared_out_by_what_really_comes(one: PlannedStream) -> None:
    """Streams that send less than they said leave time, which is given to them, bit by bit, and told."""
    rig = Rig(one, share=shared(one, 30.0))
    for name in "ab":
        assert rig.attach(name) == ""
    now = 1000.0
    for _ in range(40):
        rig.governor.tick(now)
        for stream in rig.streams.values():
            stream.counters.seen(200)  # 20 per second
        now += 10.0
    assert sum(rig.held(name).amount for name in "ab") == pytest.approx(30 / 20, rel=0.01)
    assert rig.governor.allocated == pytest.approx(30.0 * one.costs.full, rel=0.01)
    first = next(said for name, said in rig.told if name == "a")
    assert first.startswith("budget 60.0% -> ")
    assert first.endswith("% of the full network: the device was shared out anew")
    told = len(rig.told)
    assert told < 60  # small steps are not worth a word
    rig.governor.tick(now)
    rig.governor.tick(now + 9.9)  # not yet
    assert len(rig.told) == told


def test_a_stream_that_has_no_room_is_refused_or_shrunk(one: PlannedStream) -> None:
    """It is told what is missing; when another goes there is room."""
    rig = Rig(one, share=shared(one, 20.0))
    assert rig.attach("a") == ""
    assert rig.attach("b") == ""
    assert rig.held("b").amount == pytest.approx(0.2)
    assert rig.told[0][1].startswith("budget shrunk: 25 frames per second at 60.0%")
    assert "of whose" in rig.attach("c")
    rig.governor.detach("c", None)
    rig.governor.detach("a", None)
    rig.governor.set_budget("b", Budget(0.7), cause="by a test")
    assert rig.held("b").amount == pytest.approx(0.7)


def test_a_budget_per_second_is_held_between_two_rounds(one: PlannedStream) -> None:
    """Frames that suddenly come at twice the rate have half the depth, before that is measured."""
    rig = Rig(one, share=shared(one, 60.0))
    budget = Budget(4.0 * one.costs.full, "gflops_per_second")
    assert rig.attach("a", budget=budget, terms=Terms(4.0, "second")) == ""
    controller, chance = rig.lanes["a"].controller, random.Random(1)
    spent = []
    for second in range(49):
        if second % 10 == 0:
            rig.governor.tick(float(second))
            assert rig.held("a") == Terms(4.0, "second")
        rate = 5 if second < 41 else 10
        came = [second + j / rate for j in range(rate)]
        left = [controller.walk(at, [chance.random() for _ in range(3)])[1] for at in came]
        rig.streams["a"].counters.seen(rate)
        spent.append(sum(one.costs.fractions[k] for k in left))
    assert sum(spent[31:41]) / 10 == pytest.approx(4.0, rel=0.1)
    assert sum(spent[41:]) / 8 == pytest.approx(4.0, rel=0.2)
    assert not rig.told


def test_a_quiet_hour_costs_no_promise(one: PlannedStream) -> None:
    """Whoever asks for another budget then is held to the rate that it was admitted with."""
    rig = Rig(one, share=shared(one, 30.0))
    assert [rig.attach(name) for name in "ab"] == ["", ""]
    for now in range(0, 100, 10):
        rig.governor.tick(float(now))
        rig.streams["a"].counters.seen(50)  # 5 per second
        rig.streams["b"].counters.seen(250)
    rig.governor.set_budget("a", Budget(0.6), cause="by a test")
    assert "0.0 are free" in rig.attach("c")


def test_agreement_is_told_for_the_present_budget(one: PlannedStream) -> None:
    """At once after a change, from what older frames would have said under it."""
    rig = Rig(one)
    rig.attach("a")
    assert rig.governor.view("a").agreement is None
    assert rig.governor.fairness() is None
    rig.show("a", 100)
    before = rig.governor.view("a").agreement
    rig.governor.set_budget("a", Budget(1.0), cause="by a test")
    after = rig.governor.view("a").agreement
    assert before is not None
    assert after is not None
    assert before.value == pytest.approx(0.5)
    assert after.value == 1.0
    fairness = rig.governor.fairness()
    assert fairness is not None
    assert (fairness.worst_stream, fairness.worst_agreement) == ("a", 1.0)


@pytest.mark.parametrize("per", ["frame", "second"])
def test_shares_are_searched_again_for_budgets_per_frame(one: PlannedStream, per: Any) -> None:
    """Once there are enough shadow frames; what comes of it is told, and adopted if it is better."""
    rig = Rig(one)
    amount = 0.6 if per == "frame" else 15.0
    rig.attach("a", terms=Terms(amount, per))
    before = rig.lanes["a"].controller.table
    rig.show("a", FEWEST)
    rig.governor.tick(0.0)
    rig.governor.close()  # waits for what is being searched
    rig.governor.tick(0.0)
    assert [said.startswith("exit shares ") for _, said in rig.told] == [True] * (per == "frame")
    adopted = any("adopted" in said for _, said in rig.told)
    assert (rig.lanes["a"].controller.table is not before) == adopted
    assert not rig.problems


def test_what_is_kept_comes_back(one: PlannedStream, tmp_path: Path) -> None:
    """A budget that was changed at run time and what was learned, unless the policy was fitted anew."""
    file = tmp_path / "kept.json"
    rig = Rig(one, file=StateFile(file))
    rig.attach("a")
    rig.governor.set_budget("a", Budget(0.8), cause="by a test")
    controller = rig.lanes["a"].controller
    for i in range(50):
        controller.leaves(controller.enter(float(i)), 0, 0.5)
    learned = controller.memory()
    rig.governor.tick(0.0)
    rig.governor.close()
    for digest, scores in ((one.policy.digest, learned["scores"]), ("another", [[], []])):
        again = Rig(one, file=StateFile(file))
        again.attach("a", policy=replace(one.policy, digest=digest))
        again.governor.give_back()
        assert again.held("a").amount == 0.8
        said = "budget fraction=0.6 -> fraction=0.8: kept from before the restart"
        assert again.told == [("a", said)]
        assert again.lanes["a"].controller.memory()["scores"] == scores
        again.governor.close()
    changed = Rig(one, file=StateFile(file))
    changed.attach("a", budget=Budget(0.7), terms=Terms(0.7))
    changed.governor.give_back()
    assert changed.held("a").amount == 0.7
    changed.governor.close()


@pytest.mark.parametrize("part", ["all", "memory", "budget"])
def test_what_is_kept_and_cannot_be_used_is_said(
    one: PlannedStream, tmp_path: Path, part: str
) -> None:
    """The stream runs as it is configured, and half of what was kept is not taken."""
    file = StateFile(tmp_path / "kept.json")
    before = Rig(one)
    before.attach("a")
    before.governor.set_budget("a", Budget(0.8), cause="by a test")
    play(before.lanes["a"].controller, uniform(1), 50)
    kept = before.governor.memory_of("a")
    broken = {
        "all": {"configured": 1},
        "memory": {**kept, "memory": {**kept["memory"], "pace": 0}},
        "budget": {**kept, "budget": {"unit": "fraction", "amount": 1e-6}},
    }
    file.write({"a": broken[part]})
    rig = Rig(one, file=file)
    assert rig.attach("a") == ""
    rig.governor.give_back()
    assert rig.held("a").amount == rig.governor.terms("a").amount == 0.6
    assert rig.governor.budget("a") == Budget(0.6)
    assert rig.lanes["a"].controller.memory()["scores"] == [[], []]
    assert "what it holds of stream a is not used" in rig.problems[0]
    rig.governor.close()


@pytest.mark.parametrize("admission", ["shrink", "refuse"])
def test_a_restart_takes_nobodys_room(
    one: PlannedStream, tmp_path: Path, admission: Admission
) -> None:
    """Kept budgets come after all that are configured, lowered ones first, as when they were changed."""
    file, capacity = tmp_path / "kept.json", 30.0 * one.costs.full
    rig = Rig(one, share=DeviceShare(capacity, admission), file=StateFile(file))
    assert [rig.attach(name) for name in "ab"] == ["", ""]
    if admission == "refuse":
        rig.governor.set_budget("b", Budget(0.3), cause="by a test")
    rig.governor.set_budget("a", Budget(0.9), cause="by a test")  # where it is shrunk: to 0.6
    held = [rig.held(name).amount for name in "ab"]
    assert held == pytest.approx([0.6, 0.6] if admission == "shrink" else [0.9, 0.3])
    rig.governor.close()
    again = Rig(one, share=DeviceShare(capacity, admission), file=StateFile(file))
    assert [again.attach(name) for name in "ab"] == ["", ""]
    again.governor.give_back()
    assert [again.held(name).amount for name in "ab"] == pytest.approx(held)
    again.governor.close()


def test_a_stream_that_is_refused_at_a_start_is_not_forgotten(
    one: PlannedStream, tmp_path: Path
) -> None:
    """When there is room again it has what it had."""

    def run(frames_per_second: float) -> tuple[Rig, str]:
        share, file = shared(one, frames_per_second), StateFile(tmp_path / "kept.json")
        rig = Rig(one, share=share, file=file)
        refused = rig.attach("a")
        rig.governor.give_back()
        return rig, refused

    rig, _ = run(30.0)
    rig.governor.set_budget("a", Budget(0.8), cause="by a test")
    rig.governor.close()
    rig, refused = run(3.0)
    assert refused
    rig.governor.close()
    rig, _ = run(30.0)
    assert rig.held("a").amount == pytest.approx(0.8)
    rig.governor.close()


def test_an_error_of_ours_in_the_state_file_is_said(one: PlannedStream) -> None:
    """At any time, and the node ends all the same."""

    class Broken(StateFile):
        def read(self) -> dict[str, dict[str, Any]]:
            return {}

        def write(self, streams: object) -> None:
            raise ZeroDivisionError("of ours")

    rig = Rig(one, file=Broken(Path("nowhere")))
    rig.governor.tick(0.0)
    rig.governor.tick(0.1)
    rig.governor.close()
    assert rig.problems == ["state_file: ZeroDivisionError('of ours')"] * 2


def test_a_stream_that_comes_back_is_remembered(one: PlannedStream) -> None:
    """Without a file, too, as long as the node runs."""
    rig = Rig(one)
    rig.attach("a")
    controller = rig.lanes["a"].controller
    controller.leaves(controller.enter(0.0), 0, 0.5)
    rig.governor.detach("a", rig.governor.memory_of("a"))
    rig.attach("a")
    assert len(rig.lanes["a"].controller.memory()["scores"][0]) == 1


def test_a_stream_that_is_gone_for_good_is_forgotten(one: PlannedStream) -> None:
    """Another one of its name begins as it is configured."""
    rig = Rig(one)
    rig.attach("a")
    rig.governor.set_budget("a", Budget(0.8), cause="by a test")
    rig.governor.detach("a", rig.governor.memory_of("a"))
    rig.governor.forget("a")
    rig.attach("a")
    rig.governor.give_back()
    assert rig.held("a").amount == 0.6


def test_what_fails_on_the_engines_thread_is_said(one: PlannedStream) -> None:
    """And ends nothing."""
    rig = Rig(one)
    rig.attach("a")

    def fail(**_: Any) -> None:
        raise ZeroDivisionError("of ours")

    rig.lanes["a"].controller = SimpleNamespace(change=fail)
    rig.governor.set_budget("a", Budget(0.8), cause="by a test")
    assert rig.problems == ["budgets: ZeroDivisionError('of ours')"]
