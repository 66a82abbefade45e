from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamexit.backends.backend import StageResult
from streamexit.backends.torch_backend import TorchBackend
from streamexit.budget.controller import BudgetController
from streamexit.budget.terms import Terms
from streamexit.engine.engine import Engine
from streamexit.engine.lanes import PipelineLane, StreamLane
from streamexit.errors import EngineError
from streamexit.exits import CostTable, ExitRecord
from streamexit.frame import Frame, FrameInfo
from streamexit.metrics import StreamCounters
from streamexit.models.pipeline import load_pipeline
from streamexit.prediction import Classification
from streamexit.scheduling.policy import load_policy
from streamexit.scheduling.thresholds import ThresholdTable
from streamexit.tasks.classification import ClassificationTask
from streamexit.testing import ManualClock, toy_pictures

COSTS = CostTable("gflops", (1.0, 2.0, 4.0))
TABLE = ThresholdTable(COSTS.fractions, (0.5,), ((0.5, 0.5),), ((0.5, 0.25, 0.25),))


@dataclass
class ScriptedBackend:
    """Scores come from the picture: pixel k is the score at exit k, in per cent."""

    num_stages: int = 3
    sizes: tuple[int, ...] = (4, 4, 4)
    depth: int = 1
    device: str = "script"
    notes: list[str] = field(default_factory=list)
    released: list[Any] = field(default_factory=list)
    ready: bool = True
    batches: list[tuple[int, int]] = field(default_factory=list)
    lose_a_row: bool = False
    gone: bool = False
    on_submit: Callable[[], None] = lambda: None

    def submit(self, stage: int, states: Sequence[Any]) -> Scripted:
        """Note stage and size."""
        self.batches.append((stage, len(states)))
        self.on_submit()
        scores = [float(image.flat[stage]) / 100 for image in states]
        answer = ([[stage, 0]] * len(states), [[0.9, 0.1]] * len(states))
        result = StageResult(scores[: len(scores) - self.lose_a_row], answer, list(states))
        return Scripted(result, self)

    def rows_of_stage(self, stage: int) -> int:
        """That it was given."""
        return sum(rows for k, rows in self.batches if k == stage)

    def release(self, states: Sequence[Any]) -> None:
        """Note them."""
        self.released += states


@dataclass
class Scripted:
    """Done when the backend is ready."""

    value: StageResult
    backend: ScriptedBackend

    @property
    def done(self) -> bool:
        """Whether the device has got so far."""
        return self.backend.ready

    def result(self) -> StageResult:
        """The scripted result."""
        if self.backend.gone:
            raise RuntimeError("the device does not answer")
        return self.value


@dataclass
class Rig:
    """An engine with scripted scores, and what it delivered."""

    backend: ScriptedBackend = field(default_factory=ScriptedBackend)
    delivered: list[ExitRecord] = field(default_factory=list)
    deadline: float = float("inf")

    def __post_init__(self) -> None:
        task = ClassificationTask(labels=("zero", "one", "two"), top_k=2)
        self.clock = ManualClock()
        self.engine = Engine(self.delivered.append, clock=self.clock)
        self.lane = PipelineLane(self.backend, task, COSTS)
        self.streams: dict[str, StreamLane] = {}

    def admit(
        self,
        stream: str,
        scores: tuple[int, int, int],
        now: float = 0.0,
        expires_at: float = math.inf,
    ) -> None:
        """One frame whose scores are known beforehand."""
        if stream not in self.streams:
            controller = BudgetController(TABLE, Terms(0.5, window=10_000))
            self.streams[stream] = self.engine.add_stream(
                stream,
                self.lane,
                controller,
                StreamCounters(),
                max_wait=1.0,
                deadline=self.deadline,
            )
        lane = self.streams[stream]
        lane.counters.seen()
        info = FrameInfo(stream, lane.counters.frames - 1, now, now, expires_at=expires_at)
        self.clock.now = now
        self.engine.admit(lane, Frame(info, np.array([[scores]], np.uint8)))

    def run(self, now: float = 0.0, *, flush: bool = False) -> None:
        """Step until nothing is due."""
        self.clock.now = now
        while self.engine.step(flush=flush):
            pass


SURE, UNSURE = (99, 99, 99), (1, 1, 1)


def test_sure_frames_leave_early() -> None:
    """A frame leaves at the first exit whose score reaches the threshold, and pays for that."""
    rig = Rig()
    for scores in (SURE, (1, 99, 99), UNSURE):
        rig.admit("a", scores)
    rig.run(flush=True)
    assert [(r.exit, r.cost, r.prediction.headline[0]) for r in rig.delivered] == [
        (0, 1.0, "zero"),
        (1, 2.0, "one"),
        (2, 4.0, "two"),
    ]


def test_stayers_of_all_streams_are_regrouped() -> None:
    """One frame of each of eight streams stays; they share two full batches at the next stage."""
    rig = Rig()
    for i in range(8):
        rig.admit(f"s{i}", SURE)
        rig.admit(f"s{i}", UNSURE)
    rig.run()
    assert rig.backend.batches.count((1, 4)) == 2
    assert [size for stage, size in rig.backend.batches if stage] == [4] * 4


def test_answers_come_in_frame_order() -> None:
    """A frame that leaves early waits for earlier frames of its stream, not for other streams'."""
    rig = Rig()
    rig.admit("a", UNSURE)
    for _ in range(3):
        rig.admit("a", SURE)
    rig.run()
    assert rig.delivered == []
    for _ in range(4):
        rig.admit("b", SURE)
    rig.run()
    assert [r.frame.stream_id for r in rig.delivered] == ["b"] * 4
    rig.run(flush=True)
    assert [r.seq for r in rig.delivered[4:]] == [0, 1, 2, 3]


def test_partial_batch_runs_when_its_time_is_up() -> None:
    """A lone frame waits `max_wait` at each stage, and latency says so."""
    rig = Rig()
    rig.admit("a", (1, 99, 99), now=10.0)
    rig.run(10.5)
    assert rig.backend.batches == []
    assert rig.engine.next_due() == 11.0
    rig.run(11.0)
    rig.run(12.0)
    assert rig.backend.batches == [(0, 1), (1, 1)]
    assert rig.delivered[0].latency_seconds == 2.0


def test_latency_includes_the_work() -> None:
    """Time that a stage takes counts: a slow network shows in the latency of its answers."""
    rig = Rig()
    rig.admit("a", SURE, now=1.0)
    rig.backend.on_submit = lambda: rig.clock.advance(0.25)
    rig.run(1.0, flush=True)
    assert rig.delivered[0].latency_seconds == 0.25


def test_books_balance_when_idle() -> None:
    """Admitted is answered plus in flight, at any time."""
    rig = Rig()
    for i in range(11):
        rig.admit("ab"[i % 2], UNSURE if i % 3 else SURE)
        rig.run()
        rig.engine.check_integrity()
    assert rig.engine.load == 11 - sum(
        row.answer is not None for s in rig.streams.values() for row in s.open_rows
    ) - len(rig.delivered)
    rig.run(flush=True)
    rig.engine.check_integrity()
    assert len(rig.delivered) == 11


def test_given_up_frames_are_counted() -> None:
    """What is in the engine when it gives up is dropped as stopped, wherever it is; books balance."""
    rig = Rig()
    for scores in ((0, 90, 0), (90, 0, 0), (0, 0, 0), (90, 0, 0), (0, 0, 0)):
        rig.admit("a", scores)
    assert rig.engine.step()  # four rows; the second and the fourth have an answer, the first not
    rig.engine.drop_rest()
    counters = rig.streams["a"].counters
    assert rig.delivered == []
    assert counters.dropped == {"stopped": 5}
    assert (rig.engine.load, counters.in_flight) == (0, 0)
    rig.engine.check_integrity()
    assert not rig.engine.step(flush=True)


def test_lost_frame_is_noticed() -> None:
    """A frame that vanished from the queues is an integrity error, not a silence."""
    rig = Rig()
    rig.admit("a", SURE)
    rig.lane.batcher.next_batch(0.0, flush=True)
    with pytest.raises(EngineError, match="1 frames have no answer"):
        rig.engine.check_integrity()


def test_backend_must_answer_every_row() -> None:
    """A backend that returns fewer rows than it got is an error."""
    rig = Rig(ScriptedBackend(lose_a_row=True))
    rig.admit("a", SURE)
    with pytest.raises(EngineError, match="1 rows went in, 0 came out"):
        rig.run(flush=True)


def test_deadline_bounds_the_wait_over_all_stages() -> None:
    """A row that may wait a second at each stage waits no more once its deadline has come."""
    rig = Rig(deadline=1.5)
    rig.admit("a", UNSURE, now=10.0)
    assert rig.engine.next_due() == 11.0
    rig.run(11.0)
    assert rig.engine.next_due() == 11.5
    rig.run(11.5)
    assert rig.backend.batches == [(0, 1), (1, 1), (2, 1)]
    assert rig.delivered[0].latency_seconds == 1.5


def test_states_of_leavers_are_given_back() -> None:
    """Whatever a backend keeps for a row, it hears of it when the row needs no more of it."""
    rig = Rig()
    for scores in (SURE, (1, 99, 99), UNSURE):
        rig.admit("a", scores)
    rig.run(flush=True)
    assert [int(state.flat[0]) for state in rig.backend.released] == [99, 1, 1]


def test_engine_does_not_wait_for_a_device_that_has_room() -> None:
    """With room for another batch the engine goes on; when the device is full, it waits."""
    rig = Rig(ScriptedBackend(depth=2, ready=False, sizes=(1, 1, 1)))
    rig.admit("a", SURE)
    assert rig.engine.step(wait="unless_busy")
    assert not rig.engine.step(wait="unless_busy")
    assert (rig.engine.in_flight, rig.delivered) == (1, [])
    rig.admit("a", SURE)
    assert rig.engine.step(wait="unless_busy")
    assert (rig.engine.in_flight, len(rig.delivered)) == (1, 1)
    rig.backend.ready = True
    assert rig.engine.step(wait="unless_busy")
    assert len(rig.delivered) == 2


def test_waiting_only_when_full_does_not_ask_how_far_the_device_is() -> None:
    """A replay decides when as many batches are in flight as there may be, ready or not."""
    for ready in (True, False):
        rig = Rig(ScriptedBackend(depth=2, ready=ready, sizes=(1, 1, 1)))
        delivered = []
        for _ in range(4):
            rig.admit("a", SURE)
            while rig.engine.step(wait="when_full"):
                pass
            delivered.append(len(rig.delivered))
        assert delivered == [0, 1, 2, 3]
        assert rig.engine.in_flight == 1
        rig.run(flush=True)
        assert len(rig.delivered) == 4


def test_lane_takes_no_more_than_it_has_room_for() -> None:
    """A lane is full with a full batch at each stage and its batches in flight; it always drains."""
    rig = Rig(ScriptedBackend(sizes=(4, 2, 1), depth=2))
    admitted = 0
    rig.admit("a", UNSURE)
    while rig.lane.has_room:
        rig.admit("a", UNSURE)
        admitted += 1
    assert rig.lane.inside == rig.lane.capacity == 4 + 2 + 1 + 3 * 4
    rig.run()
    assert rig.lane.has_room


def admit_to_another(rig: Rig, backend: ScriptedBackend, count: int) -> None:
    """Frames of a stream "dear", whose network has one dear stage."""
    lane = PipelineLane(backend, rig.lane.task, CostTable("gflops", (40.0,)))
    table = ThresholdTable((1.0,), (), (), ())
    stream = rig.engine.add_stream(
        "dear", lane, BudgetController(table, Terms(1.0)), StreamCounters(), max_wait=1.0
    )
    for i in range(count):
        stream.counters.seen()
        frame = Frame(FrameInfo("dear", i, 0.0, 0.0), np.array([[[99, 99, 99]]], np.uint8))
        rig.engine.admit(stream, frame)


def test_pipelines_share_the_device_by_cost() -> None:
    """A stream with a cheap network gets its batches in between, not behind, those of a dear one."""
    rig = Rig(ScriptedBackend(sizes=(1, 1, 1)))
    order: list[str] = []
    rig.backend.on_submit = lambda: order.append("cheap")
    dear = ScriptedBackend(sizes=(1,), num_stages=1, on_submit=lambda: order.append("dear"))
    admit_to_another(rig, dear, 5)
    for _ in range(20):
        rig.admit("cheap", SURE)
    rig.run(flush=True)
    assert order.count("cheap") == 20
    assert order[:21].count("dear") == 1


def test_a_slow_network_holds_no_other_up() -> None:
    """What is done is taken first; and while others may come, nobody waits for a batch that still runs."""
    rig = Rig(ScriptedBackend(sizes=(1, 1, 1), depth=2))
    dear = ScriptedBackend(sizes=(1,), num_stages=1, depth=2, ready=False)
    admit_to_another(rig, dear, 2)
    rig.admit("cheap", SURE)
    while rig.engine.step(flush=True, wait="unless_busy"):
        pass
    assert [r.frame.stream_id for r in rig.delivered] == ["cheap"]
    rig.admit("cheap", SURE)
    rig.admit("cheap", SURE)
    while rig.engine.step(flush=True, wait="unless_busy"):
        pass
    assert rig.engine.in_flight == 2
    dear.ready = True
    while rig.engine.step(flush=True, wait="unless_busy"):
        pass
    assert sorted(r.frame.stream_id for r in rig.delivered) == ["cheap"] * 3 + ["dear"] * 2
    rig.engine.check_integrity()


@pytest.mark.parametrize("size", [1, 5, 64])
def test_stages_one_by_one_equal_the_network(
    toy_pipeline: Path, device: torch.device, size: int
) -> None:
    """Frames regrouped between stages get the answer that the plain network gives them."""
    pipeline = load_pipeline(toy_pipeline)
    policy = load_policy(pipeline.policy_file(None), pipeline.costs.fractions)
    images = [p.image for p in toy_pictures(40, seed=7)]
    with torch.inference_mode():
        outputs = pipeline.network(torch.from_numpy(np.stack(images)))
    expected = torch.stack([o.logits.softmax(1) for o in outputs]).numpy()
    task = pipeline.build_task()
    backend = TorchBackend(pipeline.network, task, policy.scorer, device=device, sizes=(size,) * 3)
    records: list[ExitRecord] = []
    engine = Engine(records.append, clock=ManualClock())
    lane = PipelineLane(backend, task, pipeline.costs)
    counters = StreamCounters()
    controller = BudgetController(policy.table, Terms(0.6))
    stream = engine.add_stream("a", lane, controller, counters, max_wait=0.0)
    for i, image in enumerate(images):
        counters.seen()
        engine.admit(stream, Frame(FrameInfo("a", i, float(i), 0.0), image))
    while engine.step(flush=True):
        pass
    assert len(records) == 40
    assert len({record.exit for record in records}) == 3
    for i, record in enumerate(records):
        p = expected[record.exit, i]
        assert isinstance(record.prediction, Classification)
        assert record.prediction.index == p.argmax()
        assert record.prediction.probability == pytest.approx(p.max(), abs=1e-4)


def test_shadow_frames_show_what_leaving_early_costs() -> None:
    """Every exit of such a frame is compared with the last one; its answer is the last one's."""
    rig = Rig()
    controller = BudgetController(TABLE, Terms(0.5), shadow=0.5, stream_id="a")
    stream = rig.engine.add_stream("a", rig.lane, controller, StreamCounters(), max_wait=1.0)
    rig.streams["a"] = stream
    for _ in range(40):
        rig.admit("a", SURE)
    rig.run(flush=True)
    shadows = stream.shadow.frames
    assert 8 <= len(shadows) <= 32
    assert len(rig.delivered) == 40
    assert [r.seq for r in rig.delivered] == list(range(40))
    last = [r for r in rig.delivered if r.exit == 2]
    assert len(last) >= len(shadows)
    assert {r.prediction.headline[0] for r in last} == {"two"}
    for frame in shadows:
        assert frame.scores == (0.99, 0.99, 0.99)
        assert frame.agreement == (0.0, 0.0, 1.0)
        assert frame.leaves_at in (0, 1, 2)


def test_an_answer_that_would_be_too_old_is_not_given() -> None:
    """The frame is dropped and counted, later ones keep their order and say how many are missing."""
    rig = Rig()
    for i in range(4):
        rig.admit("a", SURE, expires_at=1.0 if i in (1, 2) else math.inf)
    rig.run(now=2.0)
    counters = rig.streams["a"].counters
    assert [(r.frame.index, r.seq, r.frame.dropped_before) for r in rig.delivered] == [
        (0, 0, 0),
        (3, 1, 2),
    ]
    assert (counters.answered, counters.dropped) == (2, {"too_old": 2})
    rig.engine.check_integrity()
    assert rig.engine.load == 0


def test_a_frame_that_expires_on_its_way_costs_what_it_has_spent() -> None:
    """It goes no further, and the budget is charged for the stages that it went through."""
    expired, left, went_on = Rig(), Rig(), Rig()
    for rig, scores, expires_at in (
        (expired, UNSURE, 1.0),
        (left, SURE, math.inf),
        (went_on, UNSURE, math.inf),
    ):
        for _ in range(4):
            rig.admit("a", scores, expires_at=expires_at)
        rig.run(now=2.0)
    assert not expired.delivered
    assert expired.backend.rows_of_stage(1) == 0 < went_on.backend.rows_of_stage(1)
    debts = [rig.streams["a"].controller._debt for rig in (expired, left, went_on)]
    assert debts[0] == pytest.approx(debts[1])  # as those that left at the first exit
    assert debts[0] < debts[2]


def test_frames_that_expire_are_in_the_budgets_status() -> None:
    """What they have spent was spent: mean and shares are over them, too, in frame order."""
    rig = Rig()
    for i in range(8):
        rig.admit("a", UNSURE if i % 2 else SURE, expires_at=1.0 if i % 2 else math.inf)
        if i % 4 == 3:
            rig.run(now=2.0)
    status = rig.streams["a"].controller.status
    assert len(rig.delivered) == 4
    assert status.frames == 8
    assert status.mean == pytest.approx(COSTS.fractions[0])
    assert status.exit_shares == (1.0, 0.0, 0.0)


def test_an_empty_lane_expects_nothing_and_a_busy_one_its_pace() -> None:
    """Rows that leave one per second let the third wait three."""
    rig = Rig()
    lane = rig.lane
    assert lane.expected_latency == 0.0
    now = 0.0
    for _ in range(200):
        lane.came(now)
        lane.came(now)
        now += 1.0
        lane.left(1, now)
        now += 1.0
        lane.left(1, now)
    assert lane.expected_latency == 0.0
    lane.came(now)
    lane.came(now)
    assert lane.expected_latency == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_the_pace_is_that_of_rows_however_many_leave_together(rows: int) -> None:
    """A batch a second, with as many rows waiting: the next one waits for both."""
    lane = Rig(ScriptedBackend(sizes=(rows,) * 3)).lane
    now = 0.0
    for _ in range(2 * rows):
        lane.came(now)
    for _ in range(100):
        now += 1.0
        lane.left(rows, now)
        expected = lane.expected_latency
        for _ in range(rows):
            lane.came(now)
    assert expected == pytest.approx((rows + 1) / rows, rel=0.01)


def test_a_stream_is_detached_once_nothing_of_it_is_inside() -> None:
    """Not before; then its share of the device goes to the others, and a second time changes nothing."""
    rig = Rig()
    rig.admit("a", SURE)
    rig.admit("b", SURE)
    one = rig.streams["a"]
    assert not rig.engine.remove_stream(one)
    assert rig.lane.weight == 2.0
    rig.run(flush=True)
    assert rig.engine.remove_stream(one)
    assert rig.engine.remove_stream(one)
    assert rig.lane.weight == 1.0
    rig.admit("b", SURE)
    rig.run(flush=True)
    rig.engine.check_integrity()
    assert [r.frame.stream_id for r in rig.delivered] == ["a", "b", "b"]


def test_a_batch_on_the_device_is_given_up_with_the_rest() -> None:
    """It is waited for, its answers are forgotten, and its frames are counted as stopped."""
    rig = Rig(ScriptedBackend(depth=2, ready=False, sizes=(1, 1, 1)))
    rig.admit("a", SURE)
    assert rig.engine.step(wait="unless_busy")
    assert rig.engine.in_flight == 1
    rig.engine.drop_rest()
    assert (rig.engine.in_flight, rig.engine.load, rig.lane.inside) == (0, 0, 0)
    assert rig.streams["a"].counters.dropped == {"stopped": 1}
    rig.engine.check_integrity()
    assert not rig.engine.step(flush=True)
    assert rig.delivered == []


def test_a_frame_that_was_counted_twice_is_noticed() -> None:
    """More frames open than the source has seen is an error of the books."""
    rig = Rig()
    rig.admit("a", UNSURE)
    rig.streams["a"].counters.answered += 1
    with pytest.raises(EngineError, match=r"stream a: .* but 1 frames are open"):
        rig.engine.check_integrity()


def test_a_frame_that_got_lost_on_its_way_is_noticed() -> None:
    """Of a stream that has ended every frame is answered, dropped or inside; others may be outside."""
    rig = Rig()
    rig.admit("a", SURE)
    rig.run(flush=True)
    stream = rig.streams["a"]
    rig.engine.check_integrity(ended=[stream])
    stream.counters.seen()
    rig.engine.check_integrity()
    with pytest.raises(EngineError, match=r"stream a: .* but 0 frames are open"):
        rig.engine.check_integrity(ended=[stream])


def test_the_device_is_busy_from_the_first_batch_to_the_last() -> None:
    """Time without a batch on the device does not count, and overlapping batches count once."""
    rig = Rig(ScriptedBackend(depth=2, ready=False, sizes=(1, 1, 1)))
    rig.admit("a", SURE, now=10.0)
    rig.engine.step(wait="unless_busy")
    rig.admit("a", SURE, now=11.0)
    rig.engine.step(wait="when_full")
    rig.clock.now = 12.5
    rig.run(12.5, flush=True)
    assert len(rig.delivered) == 2
    assert rig.engine.busy_seconds == 2.5
    rig.admit("a", SURE, now=20.0)
    rig.run(21.0, flush=True)
    assert rig.engine.busy_seconds == 2.5
