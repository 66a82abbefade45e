from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamexit.backends.opening import BackendOptions
from streamexit.errors import InputError, SourceError
from streamexit.exits import Budget, ExitRecord
from streamexit.models.pipeline import load_pipeline
from streamexit.playback import BUFFER_FRAMES, Replay
from streamexit.prediction import Classification
from streamexit.scheduling.policy import load_policy
from streamexit.sources.source import DropReport, Picture, Source, Watch
from streamexit.sources.synthetic import SyntheticSource
from streamexit.testing import TOY_PREPROCESSING, ListSource, toy_pictures

CPU = torch.device("cpu")


def index_of(record: ExitRecord) -> int:
    """The class that was named."""
    assert isinstance(record.prediction, Classification)
    return record.prediction.index


def replay(
    pipeline_folder: Path,
    sources: dict[str, Source],
    *,
    budget: float = 0.6,
    policy: str | None = None,
    agreement: bool = False,
    device: torch.device = CPU,
    batch: int = 4,
) -> tuple[Replay, list[ExitRecord]]:
    """Run to the end."""
    pipeline = load_pipeline(pipeline_folder)
    records: list[ExitRecord] = []
    run = Replay(
        sources,
        pipeline=pipeline,
        policy=load_policy(pipeline.policy_file(policy), pipeline.costs.fractions),
        budget=Budget(budget),
        options=BackendOptions(device=str(device), batch=batch),
        agreement=agreement,
    )
    run.run(records.append)
    return run, records


def synthetic(count: int, frames: int = 400) -> dict[str, Source]:
    """Several generated streams."""
    return {
        f"s{i}": SyntheticSource(TOY_PREPROCESSING, seed=i, frames=frames) for i in range(count)
    }


class InTurn:
    """A source that yields nothing before another one is over."""

    live = False

    def __init__(self, source: Source, before: InTurn | None) -> None:
        self._source = source
        self._before = before
        self._over = threading.Event()

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`."""
        if self._before is not None:
            assert self._before._over.wait(60)
        yield from self._source.pictures(report, watch)
        self._over.set()


@pytest.mark.parametrize("order", [("s0", "s1", "s2"), ("s2", "s0", "s1")])
def test_same_input_same_results(toy_pipeline: Path, order: Sequence[str]) -> None:
    """Two replays agree in every record, whichever decode thread is ahead of the others."""
    free, before = synthetic(3, BUFFER_FRAMES - 1), None
    in_turn: dict[str, Source] = {}
    for name in order:  # as far ahead as there is room for
        in_turn[name] = before = InTurn(synthetic(3, BUFFER_FRAMES - 1)[name], before)
    sources = {name: in_turn[name] for name in free}
    first, second = (replay(toy_pipeline, each)[1] for each in (free, sources))
    assert first == second
    assert len(first) == 3 * (BUFFER_FRAMES - 1)


@pytest.mark.parametrize("budget", [0.45, 0.6, 0.9])
@pytest.mark.parametrize("policy", ["direct", "eenet"])
def test_each_stream_holds_its_budget(
    toy_pipeline: Path, device: torch.device, budget: float, policy: str
) -> None:
    """Mean cost within 2% and any window within 5%, for every stream and policy."""
    run, _ = replay(toy_pipeline, synthetic(3), budget=budget, policy=policy, device=device)
    for report in run.stream_reports().values():
        assert report.mean_cost is not None
        assert report.mean_cost / report.full_cost == pytest.approx(budget, rel=0.02)
        assert report.worst_window_error is not None
        assert report.worst_window_error < 0.05
        assert report.budget_state == "on_budget"


def test_unreachable_and_idle_budgets_are_said_to_be(toy_pipeline: Path) -> None:
    """A budget below the first exit, or of the full network, shows in the state."""
    assert replay(toy_pipeline, synthetic(1, 50), budget=0.1)[0].total().budget_state == (
        "unreachable"
    )
    total = replay(toy_pipeline, synthetic(1, 50), budget=1.0)[0].total()
    assert total.budget_state == "not_binding"
    assert total.exit_shares == (0.0, 0.0, 1.0)


def test_accuracy_is_that_of_the_labels(toy_pipeline: Path) -> None:
    """Accuracy is right answers over labelled frames."""
    pictures = toy_pictures(100, seed=3)
    run, records = replay(toy_pipeline, {"a": ListSource(pictures)})
    right = sum(index_of(r) == r.frame.label for r in records)
    assert run.total().against_truth == {"accuracy": right / 100}
    unlabelled: dict[str, Source] = {"a": SyntheticSource(TOY_PREPROCESSING, frames=10)}
    assert replay(toy_pipeline, unlabelled)[0].total().against_truth is None


def test_agreement_is_with_the_full_network(toy_pipeline: Path) -> None:
    """Agreement is the share of answers that the full network gives too; it costs no budget."""
    pictures = toy_pictures(150, seed=4)
    run, early = replay(toy_pipeline, {"a": ListSource(pictures)}, agreement=True)
    _, full = replay(toy_pipeline, {"a": ListSource(pictures)}, budget=1.0)
    same = sum(index_of(a) == index_of(b) for a, b in zip(early, full, strict=True))
    assert run.total().against_full == {"accuracy": same / 150}
    assert 0 < same < 150
    plain, records = replay(toy_pipeline, {"a": ListSource(pictures)})
    assert plain.total().against_full is None
    assert records == early


def test_answers_come_in_frame_order_without_gaps(toy_pipeline: Path) -> None:
    """Per stream, seq and frame rise by one."""
    _, records = replay(toy_pipeline, synthetic(4, 90))
    for stream_id in ("s0", "s1", "s2", "s3"):
        mine = [r for r in records if r.frame.stream_id == stream_id]
        assert [r.seq for r in mine] == list(range(90))
        assert [r.frame.index for r in mine] == list(range(90))


def test_one_broken_source_does_not_stop_the_others(toy_pipeline: Path) -> None:
    """A stream whose source fails is reported with its message; the rest is answered."""
    broken = ListSource(toy_pictures(20), error=SourceError("cam: gone", reason="stream_broken"))
    run, _ = replay(toy_pipeline, {"bad": broken, **synthetic(1, 60)})
    reports = run.stream_reports()
    assert reports["bad"].error == "stream bad: cam: gone"
    assert reports["bad"].answered == 20
    assert reports["s0"].error is None
    assert run.total().answered == 80


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((9, 8, 3), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        torch.zeros((8, 8, 3), dtype=torch.float32),
    ],
)
def test_a_picture_that_does_not_fit_ends_its_stream_only(toy_pipeline: Path, wrong: Any) -> None:
    """A plugin's source yields another size, grey or floats: the others never hear of it."""
    pictures = [*toy_pictures(10), Picture(wrong, 1.0)]
    run, _ = replay(toy_pipeline, {"bad": ListSource(pictures), **synthetic(1, 60)})
    reports = run.stream_reports()
    assert "the network takes uint8 [8, 8, 3]" in str(reports["bad"].error)
    assert (reports["bad"].frames, reports["bad"].answered) == (10, 10)
    assert reports["s0"].answered == 60


def test_empty_stream(toy_pipeline: Path) -> None:
    """A source without a picture gives a report of nothing, not a division by zero."""
    total = replay(toy_pipeline, {"a": ListSource([])}, agreement=True)[0].total()
    assert (total.frames, total.mean_cost, total.worst_window_error) == (0, None, None)


def test_live_source_is_refused(toy_pipeline: Path) -> None:
    """A camera cannot be replayed."""
    with pytest.raises(InputError, match="record it first"):
        replay(toy_pipeline, {"cam": ListSource([], live=True)})


@pytest.mark.parametrize("joined", [False, True])
def test_real_clips_hold_the_budget(data: Path, cifar_pipeline: Path, joined: bool) -> None:
    """The shipped pipeline on two very different clips, side by side and as one stream."""
    from streamexit.sources.addresses import parse_address
    from streamexit.sources.joined import JoinedSource
    from streamexit.sources.video import VideoSource

    preprocessing = load_pipeline(cifar_pipeline).network.preprocessing
    clips = {
        name: VideoSource(parse_address(str(data / "videos" / f"{name}.mp4")), preprocessing)
        for name in ("car-detection", "bikes")
    }
    sources: dict[str, Source] = (
        {"joined": JoinedSource(list(clips.values()))} if joined else {**clips}
    )
    run, _ = replay(cifar_pipeline, sources, budget=0.5)
    assert run.total().frames == run.total().answered == 627
    for report in run.stream_reports().values():
        assert report.mean_cost is not None
        assert report.mean_cost / report.full_cost == pytest.approx(0.5, rel=0.02)
        assert report.worst_window_error is not None
        assert report.worst_window_error < 0.05
