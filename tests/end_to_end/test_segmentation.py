"""Segmentation through everything that classification goes through, on small networks."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import cv2
import jsonschema
import numpy as np
import pytest
import torch

from streamexit.backends.opening import BackendOptions
from streamexit.calibration.collect import exit_figures, read_exits
from streamexit.calibration.compare import compare
from streamexit.calibration.record import record_sources, record_trace
from streamexit.config.load import load_configuration
from streamexit.drawing import Annotator, palette
from streamexit.errors import ConfigurationError
from streamexit.exits import Budget, ExitRecord
from streamexit.models.pipeline import load_pipeline
from streamexit.planning.streams import plan_streams
from streamexit.playback import Replay
from streamexit.prediction import VOID, Segmentation
from streamexit.runtime import Node
from streamexit.scheduling.methods import methods_for
from streamexit.scheduling.policy import load_policy
from streamexit.sinks.video import VideoSink
from streamexit.sources.source import Source
from streamexit.testing import TOY_LABELS, ListSource, toy_pictures
from streamexit.training.datasets import load_part
from tests.conftest import ROOT, MakeClip, MakeToy


@pytest.fixture(scope="module")
def street(toys: MakeToy) -> Path:
    """A small complete pipeline for segmentation; do not change it, copy it."""
    return toys("segmentation")


def play(
    folder: Path,
    sources: dict[str, Source],
    *,
    budget: float = 0.6,
    agreement: bool = False,
    device: torch.device | None = None,
) -> tuple[Replay, list[ExitRecord]]:
    """A finished replay, and its answers."""
    pipeline = load_pipeline(folder)
    records: list[ExitRecord] = []
    run = Replay(
        sources,
        pipeline=pipeline,
        policy=load_policy(pipeline.policy_file(None), pipeline.costs.fractions),
        budget=Budget(budget),
        options=BackendOptions(device=str(device or "cpu"), precision="float32", batch=4),
        window=50,
        agreement=agreement,
    )
    run.run(records.append)
    return run, records


def test_streams_hold_their_budget(street: Path, device: torch.device) -> None:
    """Two streams of maps share batches, and each stays at its budget, on every device."""
    sources: dict[str, Source] = {
        name: ListSource(toy_pictures(300, seed=seed)) for seed, name in enumerate("ab")
    }
    run, records = play(street, sources, device=device)
    for report in run.stream_reports().values():
        assert report.answered == 300
        assert report.mean_cost is not None
        assert report.mean_cost / report.full_cost == pytest.approx(0.6, rel=0.05)
    assert len({record.exit for record in records}) > 1


def test_answers_are_those_of_the_network(street: Path) -> None:
    """A frame's map is what its exit says, whatever batch it was in and whoever left before it."""
    pictures = toy_pictures(60, seed=7)
    _, records = play(street, {"a": ListSource(pictures)})
    network = load_pipeline(street).network
    for record, picture in zip(records, pictures, strict=True):
        with torch.inference_mode():
            outputs = network(torch.from_numpy(picture.image)[None])
        logits = torch.nn.functional.interpolate(
            outputs[record.exit].logits, (8, 8), mode="bilinear", align_corners=False
        )
        top = logits[0].topk(2, dim=0).values
        clear = (top[0] - top[1] > 1e-3).numpy()  # batches of another size may round otherwise
        answer = record.prediction
        assert isinstance(answer, Segmentation)
        assert np.array_equal(answer.mask[clear], logits[0].argmax(0).numpy()[clear])


def test_quality_against_truth_and_against_the_full_network(street: Path) -> None:
    """Frames with maps for labels give mIoU; so does the comparison with the full network."""
    _, full = play(street, {"a": ListSource(toy_pictures(80))}, budget=1.0)
    truths = [r.prediction.mask for r in full if isinstance(r.prediction, Segmentation)]
    labelled = [
        replace(picture, label=truth)
        for picture, truth in zip(toy_pictures(80), truths, strict=True)
    ]
    run, _ = play(street, {"a": ListSource(labelled)}, agreement=True)
    total = run.total()
    assert total.against_truth is not None
    assert total.against_full is not None
    assert 0 < total.against_truth["miou"] < 1
    assert total.against_truth == total.against_full
    assert set(total.against_truth["iou"]) == set(TOY_LABELS)
    perfect, _ = play(street, {"a": ListSource(labelled)}, budget=1.0)
    assert perfect.total().against_truth["miou"] == 1  # type: ignore[index]


def test_one_exit_is_enough(toys: MakeToy) -> None:
    """With K = 1 there is nothing to decide, and everything runs."""
    one = toys("segmentation", num_exits=1)
    run, records = play(one, {"a": ListSource(toy_pictures(20))}, budget=1.0)
    assert [record.exit for record in records] == [0] * 20
    assert run.total().exit_shares == (1.0,)


def test_all_methods_work_on_statistics_of_maps(street: Path, tmp_path: Path) -> None:
    """A trace of maps holds qualities and pixel counts; every method can be fitted and judged on it."""
    pictures = [replace(p, label=None) for p in toy_pictures(240, seed=3)]
    pipeline = load_pipeline(street)
    recording = record_sources(
        {"a": ListSource(pictures)}, kind="stream", data="toy", on_drop=lambda reason: None
    )
    trace = record_trace(pipeline, recording, tmp_path / "t.npz", device=torch.device("cpu"))
    assert trace.header.label_source == "last exit"
    assert trace.label is None
    assert trace.counts is not None
    assert trace.counts.shape == (240, 3, 3, len(TOY_LABELS))
    assert (trace.counts[:, :, 1].sum(2) == 64).all()
    assert (trace.quality[:, -1] == 1).all()
    assert 0 < trace.quality[:, 0].mean() < 1
    names = methods_for(branch=False)
    found = compare(trace, calibration=None, methods=names, budgets=[0.5, 0.8], seeds=1)
    assert [method.name for method in found.methods] == names
    for method in found.methods:
        for budget, (outcome,) in method.outcomes.items():
            assert outcome.cost <= budget * 1.005
            assert 0 < outcome.accuracy <= 1


def test_readings_by_hand(street: Path) -> None:
    """Counts and quality are those of the maps that the exits give."""
    pipeline = load_pipeline(street)
    task = pipeline.build_task()
    images = torch.from_numpy(np.stack([p.image for p in toy_pictures(4)]))
    truth = [np.full((8, 8), VOID, np.uint8) for _ in range(4)]
    truth[1][:4] = 2
    readings = read_exits(pipeline.network, task, images, truth)
    assert readings.label is None
    assert readings.evidence.right_probability is None
    assert readings.counts is not None
    assert (readings.evidence.quality[[0, 2, 3]] == 1).all()  # nothing to be wrong about
    assert readings.counts[[0, 2, 3]].sum() == 0
    assert readings.counts[1, :, 2, 2].tolist() == [32, 32, 32]


def test_video_has_every_answer_at_its_time(street: Path, tmp_path: Path) -> None:
    """One drawn picture per answer, with the recording's timestamps and its own, even size."""
    pictures = toy_pictures(30)
    grey = [np.full((169, 265, 3), 128, np.uint8) for _ in pictures]
    pipeline = load_pipeline(street)
    _, records = play(street, {"a": ListSource(pictures)})
    draw = Annotator(
        pipeline.costs, budget=0.6, window=50, preprocessing=pipeline.network.preprocessing
    )
    sink = VideoSink(tmp_path / "out.mp4", iter(grey), draw)
    for record in records:
        sink.write(record)
    sink.close()
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 30
    assert (frames[0].width, frames[0].height) == (264, 168)
    assert [frame.time for frame in frames] == pytest.approx([p.pts_seconds for p in pictures])
    for frame, record in zip(frames, records, strict=True):
        assert isinstance(record.prediction, Segmentation)
        at = record.prediction.mask[7, 7]  # of 8 x 8: the lower right corner, far from all text
        expected = (128 + palette(len(TOY_LABELS))[at].astype(int)) / 2
        seen = frame.to_ndarray(format="rgb24")[155:165, 250:260].mean((0, 1))
        assert np.abs(seen - expected).max() < 25  # the codec blurs colours


def test_engine_tells_the_task_what_the_letterbox_shows(street: Path, tmp_path: Path) -> None:
    """A frame twice as wide as high fills half of a square input; the rest of the map is void."""
    folder = tmp_path / "letterbox"
    shutil.copytree(street, folder)
    file = folder / "pipeline.yaml"
    file.write_text(file.read_text().replace("fit: stretch", "fit: letterbox"))
    pictures = [replace(p, size=(64, 32)) for p in toy_pictures(5)]
    _, records = play(folder, {"a": ListSource(pictures)})
    for record in records:
        assert isinstance(record.prediction, Segmentation)
        void = record.prediction.mask == VOID
        assert void[[0, 1, 6, 7]].all()
        assert not void[2:6].any()


def test_node_sends_regions_and_masks(street: Path, tmp_path: Path) -> None:
    """A running node puts what the configuration asks for into results that fit the schema."""
    content = {
        "results_file": "results.jsonl",
        "pipelines": {"street": str(street)},
        "streams": [
            {
                "id": "gate",
                "source": "synthetic:seed=1,frames=40",
                "rate": 10,
                "pace": "fast",
                "pipeline": "street",
                "budget": {"fraction": 0.6},
                "regions": {"left": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]},
                "mask": {"encoding": "rle", "resolution": "frame", "every_s": 1.0},
            }
        ],
    }
    (tmp_path / "node.yaml").write_text(json.dumps(content), encoding="utf-8")
    document = load_configuration(tmp_path / "node.yaml")
    asyncio.run(Node(document, on_problem=pytest.fail).run())
    schema = json.loads((ROOT / "docs" / "schemas" / "result.json").read_text(encoding="utf-8"))
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_bytes().splitlines()]
    assert len(results) == 40
    for result in results:
        jsonschema.validate(result, schema)
        (region,) = result["answer"]["regions"]
        assert region["name"] == "left"
        assert sum(c["share"] for c in region["shares"]) == pytest.approx(1, abs=1e-5)
        assert (result["answer"]["mask"] is not None) == (result["frame"] % 10 == 0)
    runs = results[0]["answer"]["mask"]["rle"]
    assert all(sum(one["counts"]) == 64 for one in runs)


def test_shipped_pipeline_knows_streets(data: Path) -> None:
    """On a few test pictures every exit of what ships is right on most pixels, the last the most."""
    pipeline = load_pipeline(ROOT / "pipelines" / "street-segmentation")
    pictures = load_part("camvid", data, "test", calibration_size=None)
    few = pictures.subset(np.arange(0, len(pictures.labels), 20))
    figures = exit_figures(pipeline.network, pipeline.build_task(), few)
    assert [f["pixel_accuracy"] > 0.8 for f in figures] == [True] * 4
    assert figures[0]["miou"] < figures[-1]["miou"]
    assert figures[-1]["miou"] > 0.55


def test_node_stopped_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """A batch of maps takes longer than a stop may: the end waits for it, and no frame is lost."""
    content = {
        "results_file": "results.jsonl",
        "engine": {"batch": 16},
        "pipelines": {"street": str(ROOT / "pipelines" / "street-segmentation")},
        "streams": [
            {
                "id": "a",
                "source": "synthetic:seed=1,frames=10000",
                "pace": "fast",
                "pipeline": "street",
                "budget": {"fraction": 1.0},
            }
        ],
    }
    (tmp_path / "node.yaml").write_text(json.dumps(content), encoding="utf-8")
    command = ["run", str(tmp_path / "node.yaml"), "--duration", "2s", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "streamexit", *command],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    stream = json.loads(done.stdout)["streams"]["a"]
    assert stream["frames"] == stream["answered"] + sum(stream["dropped"].values())


def test_replay_writes_each_map(street: Path, make_clip: MakeClip, tmp_path: Path) -> None:
    """`replay --mask png --out` gives the map of every frame, as the class of each pixel."""
    command = [
        sys.executable, "-m", "streamexit", "replay", make_clip("m.mp4", frames=12),
        "--pipeline", street, "--budget", "fraction=0.6",
        "--mask", "png", "--out", tmp_path / "maps.jsonl",
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT, capture_output=True, timeout=400)
    results = [json.loads(line) for line in (tmp_path / "maps.jsonl").read_bytes().splitlines()]
    assert len(results) == 12
    for result in results:
        png = np.frombuffer(base64.b64decode(result["answer"]["mask"]["png"]), np.uint8)
        map_ = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
        assert map_ is not None
        found = {TOY_LABELS[k]: n / map_.size for k, n in enumerate(np.bincount(map_.ravel())) if n}
        said = {share["label"]: share["share"] for share in result["answer"]["shares"]}
        assert said == pytest.approx(found, abs=1e-5)


def test_regions_of_a_pipeline_without_maps_are_refused(toy_pipeline: Path, tmp_path: Path) -> None:
    """The message names the key, the pipeline and what would be right."""
    content = {
        "pipelines": {"toy": str(toy_pipeline)},
        "streams": [
            {
                "id": "a",
                "source": "synthetic:seed=1",
                "pipeline": "toy",
                "budget": {"fraction": 0.6},
                "regions": {"lane": [[0, 0], [1, 0], [1, 1]]},
            }
        ],
    }
    file = tmp_path / "node.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"regions: pipeline toy is for classification"):
        plan_streams(load_configuration(file))
