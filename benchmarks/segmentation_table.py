"""Segmentation under a budget: `python -m benchmarks.segmentation_table`.

Records every exit of a segmentation pipeline on CamVid's validation and test parts, fits policies
on the first, judges them on the second by the mIoU of the whole part, and compares them with what
users do without policies: one exit for all frames, or the full network on every second or third
frame, its map repeated on the others. The same on real video, where the full network's maps stand in
for the truth. Writes docs/results-segmentation.md and the pipeline's card; no figure is typed by
hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamexit.calibration.compare import scores_of
from streamexit.calibration.record import Recording, record_part, record_sources, record_trace
from streamexit.calibration.trace import Trace
from streamexit.models.pipeline import WEIGHTS, Pipeline, load_pipeline, sha256
from streamexit.scheduling.evidence import Calibration
from streamexit.scheduling.policy import fit_policy
from streamexit.scheduling.thresholds import exits_taken, thresholds_within
from streamexit.sources.opening import open_source
from streamexit.tasks.readout import Task, to_host
from streamexit.tasks.segmentation import intersection_over_union, mean_iou

PIPELINE = Path("pipelines/street-segmentation")
PAGE = Path("docs/results-segmentation.md")
TRACES = Path("out/traces")
METHODS = {
    "direct": "direct search on the largest probability",
    "direct-learned": "direct search on EENet's score",
    "eenet": "EENet, repaired",
    "branchynet": "entropy",
    "pabee": "region agreement of the exits so far",
    "msdnet": "largest probability, geometric shares",
}
BUDGETS = (1 / 3, 0.4, 0.5, 0.6, 0.75)
VIDEOS = ("dashcam_solidWhiteRight.mp4", "car-detection.mp4")
EVERY = (2, 3)
"""What users do without exits: analyse each second or third frame."""

SAME_DRIVE = (
    "All 101 validation frames are from the sequence 0016E5, of which 204 training frames are as "
    "well, so policies were fitted on roads that the network had been taught on."
)

FRAMES_PER_BLOCK = 10
RESAMPLES = 1000


@dataclass(frozen=True)
class Reached:
    """What one way of spending comes to.

    Attributes:
        cost: Mean, as a share of the full network's.
        miou: Over all pixels judged.
        lost: Full network's mIoU minus this one, with a 95% interval (paired bootstrap over blocks
            of neighbouring frames).
        shares: Of the exits.
    """

    cost: float
    miou: float
    lost: tuple[float, float, float]
    shares: tuple[float, ...]


def trace_of(pipeline: Pipeline, name: str, make: Callable[[], Recording]) -> Trace:
    """The trace of that name, recorded now unless it is there and of these weights."""
    path = TRACES / f"{pipeline.name}-{name}.npz"
    weights = sha256(pipeline.folder / WEIGHTS)
    if path.is_file():
        trace = Trace.open(path)
        if trace.header.provenance["weights_sha256"] == weights:
            return trace
    return record_trace(pipeline, make(), path, device=torch.device("cpu"))


def lost_against_full(
    counts: NDArray[np.int64], full: NDArray[np.int64]
) -> tuple[float, float, float]:
    """MIoU lost, and its interval.

    Args:
        counts: [N, 3, C], of the maps that are judged.
        full: [N, 3, C], of the full network's.
    """
    blocks = np.arange(0, len(counts), FRAMES_PER_BLOCK)
    ours, theirs = (np.add.reduceat(c, blocks, axis=0) for c in (counts, full))
    draw = np.random.default_rng(0)
    lost = []
    for _ in range(RESAMPLES):
        rows = draw.integers(0, len(ours), len(ours))
        lost.append(mean_iou(theirs[rows].sum(0)) - mean_iou(ours[rows].sum(0)))
    low, high = np.percentile(lost, [2.5, 97.5]).tolist()
    return mean_iou(full.sum(0)) - mean_iou(counts.sum(0)), low, high


def judge(trace: Trace, taken: NDArray[np.int64]) -> Reached:
    """What it comes to when each frame leaves where `taken` says."""
    assert trace.counts is not None
    costs = np.asarray(trace.header.costs.fractions)
    every = np.arange(len(trace))
    counts = np.asarray(trace.counts, np.int64)
    chosen = counts[every, taken]
    shares = np.bincount(taken, minlength=len(costs)) / len(taken)
    return Reached(
        float(costs[taken].mean()),
        mean_iou(chosen.sum(0)),
        lost_against_full(chosen, counts[:, -1]),
        tuple(shares.tolist()),
    )


def under_policies(test: Trace, calibration: Trace) -> dict[str, dict[float, Reached]]:
    """Method -> budget -> outcome; places in a table are chosen by realised cost, without labels."""
    evidence = calibration.load(np.arange(len(calibration)))
    every = np.arange(len(test))
    fractions = test.header.costs.fractions
    found: dict[str, dict[float, Reached]] = {}
    for name in METHODS:
        policy = fit_policy(name, evidence, fractions)
        scores = scores_of(policy.scorer, test, every)
        found[name] = {
            budget: judge(
                test, exits_taken(scores, thresholds_within(policy.table, scores, budget))
            )
            for budget in BUDGETS
            if budget > fractions[0]
        }
    return found


def full_maps(pipeline: Pipeline, task: Task, images: Iterator[Any]) -> Iterator[Any]:
    """The last exit's answer for each picture."""
    with torch.inference_mode():
        for image in images:
            output = pipeline.network(torch.from_numpy(image)[None])[-1]
            yield task.prediction(to_host(task.read(output.logits, None).answer), 0)


def repeated(
    task: Task, answers: Sequence[Any], truth: Sequence[Any], every: int
) -> NDArray[np.int64]:
    """Pixel counts [N, 3, C] when only each `every`th frame is analysed, and its map repeated."""
    counts = [task.judge(answers[i // every * every], t).counts for i, t in enumerate(truth)]
    return np.asarray(counts, np.int64)


def skipping(pipeline: Pipeline, data: Path) -> dict[int, Reached]:
    """The full network on every nth test picture, by n."""
    task = pipeline.build_task()
    recording = record_part(pipeline, "test", data)
    pairs = [(picture.image, picture.label) for _, picture in recording.frames]
    truth = [label for _, label in pairs]
    answers = list(full_maps(pipeline, task, (image for image, _ in pairs)))
    full = repeated(task, answers, truth, 1)
    found = {}
    for every in EVERY:
        ours = repeated(task, answers, truth, every)
        found[every] = Reached(1 / every, mean_iou(ours.sum(0)), lost_against_full(ours, full), ())
    return found


def on_video(pipeline: Pipeline, calibration: Calibration, file: Path) -> dict[str, Any]:
    """Agreement with the full network on a recording, at equal compute."""
    source = open_source(
        str(file), preprocessing=pipeline.network.preprocessing, labels=pipeline.labels
    )
    trace = trace_of(
        pipeline,
        file.stem,
        lambda: record_sources(
            {"video": source}, kind="stream", data=file.name, on_drop=lambda reason: None
        ),
    )
    policy = fit_policy("direct", calibration, pipeline.costs.fractions)
    scores = scores_of(policy.scorer, trace, np.arange(len(trace)))
    task = pipeline.build_task()
    images = (picture.image for picture in source.pictures(lambda reason: None))
    answers = list(full_maps(pipeline, task, images))
    truth = [task.target(answer) for answer in answers]
    found: dict[str, Any] = {"frames": len(trace)}
    for every in EVERY:
        taken = exits_taken(scores, thresholds_within(policy.table, scores, 1 / every))
        skipped = repeated(task, answers, truth, every)
        found[f"1/{every}"] = (judge(trace, taken).miou, mean_iou(skipped.sum(0)))
    return found


def exit_rows(pipeline: Pipeline, test: Trace) -> Iterator[str]:
    """Each exit alone."""
    assert test.counts is not None
    for k, fraction in enumerate(pipeline.costs.fractions):
        both, _, truth = np.asarray(test.counts[:, k], np.int64).sum(0)
        reached = judge(test, np.full(len(test), k))
        yield (
            f"| {k + 1} | {pipeline.costs.per_exit[k]:.3f} | {fraction:.1%} | "
            f"{100 * reached.miou:.2f} | {100 * both.sum() / truth.sum():.2f} | "
            f"{_lost(reached)} |"
        )


def class_rows(pipeline: Pipeline, test: Trace) -> Iterator[str]:
    """IoU per class at each exit."""
    assert test.counts is not None
    per_exit = [
        intersection_over_union(np.asarray(test.counts[:, k], np.int64).sum(0))
        for k in range(test.num_exits)
    ]
    for c, label in enumerate(pipeline.labels):
        yield f"| {label} | " + " | ".join(f"{100 * iou[c]:.1f}" for iou in per_exit) + " |"


def page(
    pipeline: Pipeline,
    test: Trace,
    policies: dict[str, dict[float, Reached]],
    skipped: dict[int, Reached],
    videos: dict[str, dict[str, Any]],
) -> str:
    """docs/results-segmentation.md."""
    budgets = list(next(iter(policies.values())))
    lines = [
        "# Segmentation under a budget",
        "",
        "Written by `python -m benchmarks.segmentation_table`; no figure is typed by hand.",
        "",
        f"{pipeline.name} on CamVid, {len(test)} test pictures of 480x360 pixels, 11 classes. mIoU "
        "over all labelled pixels of the part, in per cent. Policies are fitted on the 101 validation "
        "pictures; on the test pictures only the place in a policy's table is chosen, by realised "
        "cost, without labels. Lost: against the full network on the same pictures, with 95% intervals "
        f"(paired bootstrap over blocks of {FRAMES_PER_BLOCK} neighbouring pictures). {SAME_DRIVE}",
        "",
        "## Each exit for all frames",
        "",
        "| exit | GFLOPs per frame | share of full | mIoU | pixel accuracy | mIoU lost |",
        "|---|---|---|---|---|---|",
        *exit_rows(pipeline, test),
        "",
        "## Policies",
        "",
        "mIoU lost, in points:",
        "",
        "| policy | " + " | ".join(f"{b:.1%}" for b in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for name, outcomes in policies.items():
        cells = " | ".join(_lost(outcomes[b]) for b in budgets)
        lines.append(f"| {name}: {METHODS[name]} | {cells} |")
    shares = policies["direct"]
    lines += [
        "",
        "Exit shares of `direct`: "
        + "; ".join(
            f"{b:.1%}: {' / '.join(f'{100 * s:.0f}' for s in shares[b].shares)}" for b in budgets
        )
        + ".",
        "",
        "Without exits one analyses fewer frames. The full network on every second picture, its map "
        f"repeated on the next, spends a half and loses {_lost(skipped[2])}; on every third it spends a "
        f"third and loses {_lost(skipped[3])}. CamVid's test pictures are a second apart, which is "
        "hard on that. On video, where the full network's own maps stand in for the truth, mIoU with "
        "them comes to",
        "",
        "| recording | frames | `direct`, a half | every second frame | `direct`, a third | "
        "every third frame |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {found['frames']} | "
            + " | ".join(f"{100 * miou:.1f}" for n in EVERY for miou in found[f"1/{n}"])
            + " |"
            for name, found in videos.items()
        ),
        "",
        "## Classes",
        "",
        "IoU on the test part at each exit:",
        "",
        "| class | " + " | ".join(f"exit {k + 1}" for k in range(test.num_exits)) + " |",
        "|---" * (test.num_exits + 1) + "|",
        *class_rows(pipeline, test),
        "",
    ]
    return "\n".join(lines)


def card(pipeline: Pipeline, test: Trace, policies: dict[str, dict[float, Reached]]) -> str:
    """The pipeline's README.md."""
    training: dict[str, Any] = json.loads((pipeline.folder / "training.json").read_text("utf-8"))
    recipe = training["recipe"]
    folder = pipeline.folder.as_posix()
    name = pipeline.default_policy if pipeline.default_policy in policies else "direct"
    outcomes = policies[name]
    lines = [
        f"# {pipeline.name}",
        "",
        f"Street scenes: one of {len(pipeline.labels)} classes for each pixel "
        f"({', '.join(pipeline.labels)}). EfficientNet-Lite0 with a decoder and "
        f"{len(pipeline.costs.per_exit)} exits, started from its ImageNet weights (Apache-2.0) and "
        f"trained by `streamexit train {folder}/train.yaml` ({recipe['optimiser']['epochs']} epochs on "
        f"{training['train_pictures']} pictures, {training['device'].upper()}, {training['date']}). "
        f"Policies: `streamexit fit {folder}` on CamVid's validation part. {SAME_DRIVE}",
        "",
        f"On its {len(test)} test pictures, which are from drives of the same camera in the same "
        "town. Elsewhere it is worse, and without labels it is not known by how much: the pictures in "
        "docs/segmentation.md show where it is lost.",
        "",
        "| exit | GFLOPs per frame | share of full | mIoU | pixel accuracy | mIoU lost |",
        "|---|---|---|---|---|---|",
        *exit_rows(pipeline, test),
        "",
        f"With `{name}` ({METHODS[name]}):",
        "",
        "| budget | mean cost | mIoU | mIoU lost |",
        "|---|---|---|---|",
        *(
            f"| {b:.1%} | {r.cost:.1%} | {100 * r.miou:.2f} | {_lost(r)} |"
            for b, r in outcomes.items()
        ),
        "",
        f"Made by `python -m benchmarks.segmentation_table {folder}`; more in "
        "docs/results-segmentation.md.",
        "",
        "## Data and licence",
        "",
        "CamVid (Brostow et al., 2009) in the SegNet tutorial's version, which its repository puts "
        "under CC BY-NC 4.0, for personal and research use. The weights are derived from those "
        "pictures: use them for research and trial, not commercially, and train on pictures of your "
        "own for anything else. The code of the network is under the project's licence.",
        "",
    ]
    return "\n".join(lines)


def _lost(reached: Reached) -> str:
    lost, low, high = (100 * number for number in reached.lost)
    return f"{lost:.2f} [{low:.2f}, {high:.2f}]"


def pipeline_and_data(description: str | None) -> tuple[Pipeline, Path]:
    """What the command line names; the network then runs on one thread."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("pipeline", type=Path, nargs="?", default=PIPELINE)
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    return load_pipeline(options.pipeline), options.data


def main() -> None:
    """Measure and write."""
    pipeline, data = pipeline_and_data(__doc__)
    test, calibration = (
        trace_of(pipeline, part, partial(record_part, pipeline, part, data))
        for part in ("test", "calibration")
    )
    policies = under_policies(test, calibration)
    evidence = calibration.load(np.arange(len(calibration)))
    videos = {name: on_video(pipeline, evidence, data / "videos" / name) for name in VIDEOS}
    skipped = skipping(pipeline, data)
    PAGE.write_text(page(pipeline, test, policies, skipped, videos), encoding="utf-8")
    (pipeline.folder / "README.md").write_text(card(pipeline, test, policies), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
