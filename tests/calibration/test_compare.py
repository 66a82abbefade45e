from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamexit.calibration.compare import RELIABILITY_BINS, compare
from streamexit.calibration.outcomes import (
    Comparison,
    Difference,
    Outcome,
    block_starts,
    difference,
    differences,
    judge_thresholds,
    oracle_accuracy,
)
from streamexit.calibration.record import record_sources, record_trace
from streamexit.calibration.trace import Trace, TraceHeader, TraceWriter
from streamexit.errors import BudgetError, DataError, InputError, PipelineError
from streamexit.exits import CostTable
from streamexit.models.pipeline import load_pipeline
from streamexit.scheduling.evidence import Calibration, Floats
from streamexit.sources.source import Picture, Source
from streamexit.testing import ListSource, toy_pictures
from tests.scheduling.samples import synthetic

COSTS = CostTable("gflops", (0.1, 0.24, 0.4))
CPU = torch.device("cpu")


def write(
    path: Path,
    *,
    frames: int = 2000,
    seed: int = 0,
    kind: str = "images",
    costs: CostTable = COSTS,
    branch: bool = True,
    only: int | None = None,
    provenance: dict[str, str] | None = None,
    skills: tuple[float, ...] = (1.0, 2.0, 4.0),
) -> Trace:
    """A synthetic trace: of streams, two, recorded one after the other."""
    evidence, labels = synthetic(frames, skills=skills, seed=seed)
    if not branch:
        evidence = Calibration(evidence.distribution, evidence.confidence, evidence.quality)
    stream = (np.arange(frames) >= frames // 3).astype(np.int64)
    header = TraceHeader(
        "made up",
        "synthetic",
        "stream" if kind == "stream" else "images",
        "truth",
        ("a", "b", "c", "d"),
        ("one", "two"),
        costs,
        provenance or {},
    )
    with TraceWriter(path, header) as writer:
        writer.append(
            evidence,
            label=labels if only is None else np.full(frames, only),
            stream=stream,
            time=(np.arange(frames) - stream * (frames // 3)) / 25,
        )
    return Trace.open(path)


def run(
    trace: Trace,
    methods: Sequence[str] = ("msdnet", "direct"),
    budgets: Sequence[float] = (0.4, 0.6, 0.8),
    *,
    calibration: Trace | None = None,
    seeds: int = 1,
    against: str | None = None,
) -> Comparison:
    """`compare`, with little to do."""
    return compare(
        trace,
        calibration=calibration,
        methods=methods,
        budgets=budgets,
        seeds=seeds,
        against=against,
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Two thousand independent pictures."""
    return write(tmp_path_factory.mktemp("trace") / "images.npz")


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Two streams, of 666 and 1334 frames."""
    return write(tmp_path_factory.mktemp("trace") / "streams.npz", kind="stream")


class Witness(Trace):
    """A trace that notes which frames were read for what."""

    def load(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Calibration:
        """Note the rows, then as usual."""
        self.provenance.append(np.asarray(rows))
        return super().load(rows)

    @property
    def provenance(self) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """Rows of every load so far."""
        noted: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = self.__dict__.setdefault("_n", [])
        return noted


def witnessed(trace: Trace) -> tuple[set[int], set[int]]:
    """(rows that were fitted on, rows that were judged on) of a comparison with one seed."""
    witness = Witness.open(trace.path)
    assert isinstance(witness, Witness)
    run(witness, ["msdnet"], [0.5])
    fitted, *judged = witness.provenance
    return set(fitted.tolist()), set(np.concatenate(judged).tolist())


def test_pictures_are_split_within_each_class(images: Trace) -> None:
    """No frame is both fitted and judged on, and each class gives half of its frames to each."""
    fitted, judged = witnessed(images)
    assert not fitted & judged
    assert len(fitted | judged) == len(images)
    for label in range(4):
        rows = set(np.flatnonzero(images.label == label).tolist())
        assert abs(len(rows & fitted) - len(rows & judged)) <= 1


def test_streams_are_split_by_time(streams: Trace) -> None:
    """In each stream every frame that is fitted on comes before every one that is judged on."""
    fitted, judged = witnessed(streams)
    for stream in range(2):
        rows = set(np.flatnonzero(streams.stream == stream).tolist())
        assert len(rows & judged) == (len(rows) + 1) // 2
        assert len(rows & fitted) > len(rows) // 3
        before, after = (streams.time[sorted(rows & part)] for part in (fitted, judged))
        assert before.max() < after.min()


def test_other_seeds_mean_other_frames(images: Trace, streams: Trace) -> None:
    """Seeds differ in what is fitted; with one seed a comparison repeats itself exactly."""
    for trace in (images, streams):
        report = run(trace, ["direct"], [0.6], seeds=2).methods[0]
        first, second = report.outcomes[0.6]
        assert first.exit_shares != second.exit_shares
        again = run(trace, ["direct"], [0.6]).methods[0].outcomes[0.6][0]
        assert (again.cost, again.accuracy, again.interval) == (
            first.cost,
            first.accuracy,
            first.interval,
        )


METHODS = ("branchynet", "msdnet", "pabee", "pabee-counter", "eenets", "jei-dnn", "direct")


@pytest.mark.parametrize("kind", ["images", "streams"])
def test_every_method_spends_the_same_and_no_more_than_the_oracle_reaches(
    images: Trace, streams: Trace, kind: str
) -> None:
    """Costs are within half a per cent of the budget; the oracle is above, intervals are around."""
    comparison = run(images if kind == "images" else streams, METHODS)
    assert [method.name for method in comparison.methods] == list(METHODS)
    for method in comparison.methods:
        for budget, (outcome,) in method.outcomes.items():
            assert outcome.cost == pytest.approx(budget, rel=0.005)
            assert outcome.cost <= budget + 1e-9
            assert outcome.on_target
            assert sum(outcome.exit_shares) == pytest.approx(1)
            assert np.dot(outcome.exit_shares, COSTS.fractions) == pytest.approx(outcome.cost)
            low, high = outcome.interval
            assert low < outcome.accuracy < high
            assert high - low < 0.12
            assert outcome.accuracy <= comparison.references[budget]["oracle"] + 1e-9
            assert outcome.blocks.sum() / outcome.frames == pytest.approx(outcome.accuracy)
    assert comparison.full == pytest.approx(comparison.exit_accuracy[-1])
    points = {m.name: set(m.own_points) for m in comparison.methods if m.own_points}
    assert points == {
        "pabee-counter": {"patience 1", "patience 2"},
        "eenets": {"confidence 0.5"},
        "jei-dnn": {"gate 0.5"},
    }


def test_references_at_the_ends_are_the_first_and_the_last_exit(images: Trace) -> None:
    """At the first exit's cost all is what that exit says, at the full cost what the last says."""
    comparison = run(images, ["msdnet"], [0.25, 1.0])
    first, full = (comparison.methods[0].outcomes[b][0] for b in (0.25, 1.0))
    assert (first.exit_shares, full.exit_shares) == ((1, 0, 0), (0, 0, 1))
    assert first.accuracy == pytest.approx(comparison.exit_accuracy[0])
    assert full.accuracy == pytest.approx(comparison.full)
    assert comparison.references[0.25]["oracle"] == pytest.approx(first.accuracy)
    assert comparison.references[1.0]["random"] == pytest.approx(comparison.full)
    assert comparison.references[1.0]["oracle"] >= comparison.full


def test_reliability_is_of_scores_in_bins(images: Trace) -> None:
    """Scores of a bin lie in it; what the bins reach comes together to what the exit reaches."""
    comparison = run(images, ["msdnet"], [0.5])
    for k, bins in enumerate(comparison.methods[0].reliability):
        places = [int(score * RELIABILITY_BINS) for score, _, _ in bins]
        assert places == sorted(set(places))
        assert sum(share for _, _, share in bins) == pytest.approx(1)
        mean = sum(quality * share for _, quality, share in bins)
        assert mean == pytest.approx(comparison.exit_accuracy[k])


def test_random_is_exits_without_a_look(images: Trace) -> None:
    """Between the first and the last exit it is a mixture of what they say, below every policy here."""
    comparison = run(images, ["direct"], [0.4, 0.6])
    for budget, found in comparison.references.items():
        assert found["random"] < max(comparison.exit_accuracy) - 0.01
        assert found["random"] < comparison.methods[0].outcomes[budget][0].accuracy


def test_frozen_thresholds_miss_the_budget_where_scores_have_moved(
    images: Trace, tmp_path: Path
) -> None:
    """On frames that the network is less sure of, calibration's thresholds spend more; hindsight does not."""
    hazy = write(tmp_path / "hazy.npz", seed=4, skills=(0.3, 1.0, 3.0))
    (report,) = run(hazy, ["msdnet"], [0.5], calibration=images).methods
    assert report.outcomes[0.5][0].on_target
    assert not report.frozen[0.5][0].on_target
    assert report.frozen[0.5][0].cost > 0.55


def test_which_frames_leave_where_adds_up(images: Trace, streams: Trace) -> None:
    """Per class, or per twentieth of the time, exit shares sum to one."""
    for trace, names in ((images, ("a", "b", "c", "d")), (streams, ("0%", "5%"))):
        budget, groups, table = run(trace).leaving
        assert budget == 0.6
        assert groups[: len(names)] == names
        assert table.shape == (len(groups), 3)
        assert table.sum(1) == pytest.approx(np.ones(len(groups)))


def test_calibration_of_its_own(images: Trace, tmp_path: Path) -> None:
    """With a trace to fit on, all of the other is judged; seeds draw four fifths of the first."""
    other = write(tmp_path / "other.npz", frames=500, seed=9)
    comparison = run(images, calibration=other, seeds=2)
    assert (comparison.acceptance_frames, comparison.calibration_frames) == (2000, 400)
    assert all(
        o.on_target for m in comparison.methods for runs in m.outcomes.values() for o in runs
    )


# Worked by hand: the first exit is right on the third frame only; frame 0 is won at exit 1 for a
# quarter, frame 1 at exit 2 for three quarters, frame 3 never.
QUALITY = np.array([[0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]], float)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(0.25, 1 / 4), (0.31, 1 / 4), (0.3125, 2 / 4), (0.49, 2 / 4), (0.5, 3 / 4), (1.0, 3 / 4)],
)
def test_oracle_by_hand(budget: float, expected: float) -> None:
    """Four frames at costs 1/4, 1/2, 1: a mean of 5/16 pays for one gain, of 1/2 for both."""
    assert oracle_accuracy(QUALITY, np.array([0.25, 0.5, 1.0]), budget) == expected


def test_no_choice_of_exits_beats_the_oracle() -> None:
    """Against every choice of exits for five frames, the oracle is the best within any budget."""
    costs, random = np.array([0.2, 0.5, 1.0]), np.random.default_rng(0)
    choices = np.stack(np.meshgrid(*[range(3)] * 5), -1).reshape(-1, 5)
    for _ in range(20):
        quality = (random.random((5, 3)) < 0.5).astype(float)
        spent = costs[choices].mean(1)
        reached = quality[np.arange(5), choices].mean(1)
        for budget in (0.2, 0.3, 0.45, 0.61, 0.8, 1.0):
            best = reached[spent <= budget + 1e-9].max()
            assert oracle_accuracy(quality, costs, budget + 1e-9) == pytest.approx(best)


def test_difference(images: Trace) -> None:
    """A method differs from itself by nothing; from another by the difference of accuracies."""
    comparison = run(images, ("direct", "pabee"), [0.6], seeds=2)
    one, other = (method.outcomes[0.6] for method in comparison.methods)
    assert difference(one, one) == Difference(0, 0, 0, on_target=True)
    found, turned = difference(one, other), difference(other, one)
    gaps = [a.accuracy - b.accuracy for a, b in zip(one, other, strict=True)]
    assert found.gap == pytest.approx(np.mean(gaps))
    assert found.low < found.gap < found.high
    assert (turned.gap, turned.low, turned.high) == pytest.approx(
        (-found.gap, -found.high, -found.low), abs=0.005
    )


@pytest.mark.parametrize(
    ("low", "high", "on_target", "sure"),
    [
        (0.1, 0.3, True, True),
        (-0.3, -0.1, True, True),
        (-0.1, 0.3, True, False),
        (0.1, 0.3, False, False),
    ],
)
def test_a_difference_is_sure_at_equal_cost_only(
    low: float, high: float, on_target: bool, sure: bool
) -> None:
    """An interval that leaves 0 out says nothing of methods that have not spent the same."""
    assert Difference((low + high) / 2, low, high, on_target).sure is sure


def test_difference_of_methods_that_missed_the_cost(images: Trace) -> None:
    """One outcome off its budget, on either side, and the two do not compare."""
    comparison = run(images, ("direct", "pabee"), [0.6])
    one, other = (method.outcomes[0.6] for method in comparison.methods)
    missed = [replace(outcome, on_target=False) for outcome in other]
    assert difference(one, other).on_target
    assert not difference(one, missed).on_target
    assert not difference(missed, one).on_target


def judged(quality: Floats, *streams: int) -> Outcome:
    """What one exit reaches on streams of so many frames, or on independent pictures."""
    stream = np.repeat(np.arange(len(streams)), streams) if streams else None
    return judge_thresholds(
        np.ones((len(quality), 1)),
        np.array([-np.inf]),
        quality[:, None],
        np.ones(1),
        None,
        block_starts(len(quality), stream),
    )


def test_blocks_hold_what_they_hold() -> None:
    """A short last block weighs what its frames weigh; all right is all right, surely."""
    outcome = judged(np.ones(260), 260)
    assert outcome.sizes.tolist() == [50, 50, 50, 50, 50, 10]
    assert outcome.blocks.tolist() == outcome.sizes.tolist()
    assert outcome.interval == (1, 1)


def test_no_block_runs_from_one_stream_into_the_next() -> None:
    """Each stream begins one."""
    assert judged(np.ones(180), 70, 110).sizes.tolist() == [50, 20, 50, 50, 10]
    assert judged(np.ones(3)).sizes.tolist() == [1, 1, 1]


@pytest.mark.parametrize("frames", [51, 260, 999])
def test_intervals_are_shares(frames: int) -> None:
    """However short the last block is, and however right the answers are."""
    chance = np.random.default_rng(frames)
    for right in (0.02, 0.5, 0.98):
        outcome = judged((chance.random(frames) < right).astype(float), frames)
        low, high = outcome.interval
        assert 0 <= low <= outcome.accuracy <= high <= 1


@pytest.mark.parametrize("run_length", [1, 40])
def test_intervals_cover(run_length: int) -> None:
    """Of recordings of neighbours that are alike, nineteen in twenty have the truth within theirs."""
    chance = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        offset = int(chance.integers(run_length))
        draws = chance.random(2 + 3000 // run_length) < 0.7
        quality = np.repeat(draws, run_length)[offset : offset + 3000].astype(float)
        low, high = judged(quality, 3000).interval
        covered += low <= 0.7 <= high
    assert 0.85 * 200 <= covered <= 0.99 * 200


@pytest.mark.parametrize(
    ("names", "against", "expected"),
    [
        (("direct", "msdnet"), None, "msdnet"),
        (("direct", "pabee"), None, "direct"),
        (("direct", "msdnet", "pabee"), "pabee", "pabee"),
    ],
)
def test_what_the_others_are_measured_against(
    images: Trace, names: tuple[str, ...], against: str | None, expected: str
) -> None:
    """The method asked for; else what everybody has, or the first."""
    comparison = run(images, names, [0.6], seeds=1, against=against)
    assert comparison.reference == expected
    assert list(differences(comparison)) == [name for name in names if name != expected]


def test_a_reference_has_to_be_compared(images: Trace) -> None:
    """The message says what is."""
    with pytest.raises(InputError, match="against: 'pabee' is not compared; write one of direct"):
        run(images, ("direct",), [0.6], against="pabee")


def test_what_cannot_be_compared_is_refused(images: Trace, tmp_path: Path) -> None:
    """Unknown methods, missing branches, budgets out of range and unfit traces name the mistake."""
    bare = write(tmp_path / "bare.npz", branch=False)
    with pytest.raises(PipelineError, match="'magic' is unknown; known are branchynet"):
        run(images, ["msdnet", "magic"])
    with pytest.raises(DataError, match=r"bare\.npz: its network has no confidence branch"):
        run(bare, ["eenets"])
    for budget in (0.2, 1.1, -1.0, float("nan")):
        with pytest.raises(BudgetError, match=r"lies outside 0\.25"):
            run(images, budgets=[0.5, budget])
    with pytest.raises(DataError, match=r"one\.npz: all frames are of one class"):
        run(write(tmp_path / "one.npz", frames=50, only=2))
    other = CostTable("gflops", (0.1, 0.25, 0.4))
    with pytest.raises(DataError, match=r"costs\.npz: is of another network"):
        run(images, calibration=write(tmp_path / "costs.npz", costs=other, seed=3))
    with pytest.raises(DataError, match="holds the frames of"):
        run(images, calibration=images)
    with pytest.raises(DataError, match=r"same\.npz: holds the frames of"):
        run(images, calibration=write(tmp_path / "same.npz"))
    weights = write(tmp_path / "weights.npz", seed=3, provenance={"weights_sha256": "other"})
    with pytest.raises(DataError, match=r"weights\.npz: is of another network .* other weights"):
        run(images, calibration=weights)
    taught = write(tmp_path / "taught.npz", seed=3, provenance={"part": "train"})
    for trace, calibration in ((taught, None), (images, taught)):
        with pytest.raises(DataError, match=r"taught\.npz: holds the pictures .* was trained on"):
            run(trace, calibration=calibration)
    few = write(tmp_path / "few.npz", frames=4)
    with pytest.raises(DataError, match="1 frames of 3 exits"):
        run(few)


def record(folder: Path, pictures: dict[str, list[Picture]], out: Path) -> Trace:
    """A trace of streams through a pipeline."""
    sources: dict[str, Source] = {name: ListSource(some) for name, some in pictures.items()}
    recording = record_sources(sources, kind="stream", data="made", on_drop=lambda reason: None)
    return record_trace(load_pipeline(folder), recording, out, device=CPU)


def unlabelled(count: int, seed: int = 0) -> list[Picture]:
    """Pictures without the truth."""
    return [Picture(p.image, p.pts_seconds, None) for p in toy_pictures(count, seed=seed)]


def test_without_labels_the_last_exit_is_the_measure(toy_pipeline: Path, tmp_path: Path) -> None:
    """Recorded without labels, the last exit is always right and the rest agree with it or not."""
    parts = {"a": unlabelled(150), "b": unlabelled(210, 1)}
    trace = record(toy_pipeline, parts, tmp_path / "t.npz")
    assert trace.header.label_source == "last exit"
    assert trace.header.streams == ("a", "b")
    assert trace.header.kind == "stream"
    assert np.array_equal(np.bincount(trace.stream), [150, 210])
    assert trace.label is not None
    assert np.array_equal(trace.label, trace.predictions[:, -1])
    assert np.all(trace.quality[:, -1] == 1)
    assert np.array_equal(trace.quality, trace.predictions == trace.label[:, None])
    assert np.all(np.diff(trace.time[:150]) > 0)
    comparison = run(trace, ["msdnet"], [0.6])
    assert comparison.full == 1
    assert comparison.references[0.6]["oracle"] <= 1


def test_recorded_truth_is_the_labels(toy_pipeline: Path, tmp_path: Path) -> None:
    """Labelled frames are measured by their labels, through the network that the folder holds."""
    pictures = toy_pictures(100, seed=5)
    trace = record(toy_pipeline, {"a": pictures}, tmp_path / "t.npz")
    assert trace.header.label_source == "truth"
    assert trace.label is not None
    assert trace.label.tolist() == [p.label for p in pictures]
    assert np.array_equal(trace.quality, trace.predictions == trace.label[:, None])
    pipeline = load_pipeline(toy_pipeline)
    assert (trace.header.labels, trace.header.costs) == (pipeline.labels, pipeline.costs)
    with torch.inference_mode():
        outputs = pipeline.network(torch.from_numpy(np.stack([p.image for p in pictures])))
    expected = torch.stack([o.logits.argmax(1) for o in outputs], 1).numpy()
    assert np.array_equal(trace.predictions, expected)


@pytest.mark.parametrize("count", [256, 257, 258, 259])
def test_any_number_of_frames_can_be_recorded(
    toy_pipeline: Path, tmp_path: Path, count: int
) -> None:
    """The last batch may hold fewer frames than the network has exits."""
    trace = record(toy_pipeline, {"a": toy_pictures(count)}, tmp_path / "t.npz")
    assert len(trace) == count


def test_what_cannot_be_recorded_is_refused(toy_pipeline: Path, tmp_path: Path) -> None:
    """No frames, half the labels or a live source are refused, and no file is left."""
    out = tmp_path / "t.npz"
    with pytest.raises(DataError, match="no frames"):
        record(toy_pipeline, {"a": []}, out)
    with pytest.raises(DataError, match="some frames have a label and some have none"):
        record(toy_pipeline, {"a": toy_pictures(20) + unlabelled(20)}, out)
    with pytest.raises(InputError, match="cam: a live source has no end"):
        record_sources(
            {"cam": ListSource([], live=True)},
            kind="stream",
            data="cam",
            on_drop=lambda reason: None,
        )
    assert list(tmp_path.iterdir()) == []
