"""Speed and correctness together: what backends say of real frames, beside eager float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch

from streamexit.backends.backend import Backend
from streamexit.backends.opening import BackendOptions, open_backend
from streamexit.backends.openvino_backend import pick_precision
from streamexit.backends.openvino_stages import load_stages
from streamexit.backends.scored_stage import ScoredStage
from streamexit.calibration.collect import read_exits
from streamexit.models.cifar_resnet import build
from streamexit.models.pipeline import Pipeline, load_pipeline
from streamexit.preprocessing import Image, Preprocessing
from streamexit.scheduling.policy import fit_policy, load_policy
from streamexit.scheduling.scorers import ConfidenceBranch
from streamexit.sources.opening import open_source
from streamexit.tasks.classification import ClassificationTask
from streamexit.testing import toy_pictures
from tests.conftest import ROOT, MakeToy

CUDA = pytest.mark.needs_cuda
CLIPS = ("bikes.mp4", "car-detection.mp4", "highway_video02.avi")
PER_CLIP = 30

BOUNDS = {
    # share of frames with the same answer at least, mean and largest difference of scores at most
    "float32": (1.0, 2e-5, 1e-3),
    "bf16": (0.93, 0.02, 0.15),
}
"""float32 in another order of operations; bf16 has 8 bits of mantissa. The clips' frames are far from
what the CIFAR network has learned, so many answers are near ties: the worst case for agreement."""


def frames(pipeline: Pipeline, data: Path) -> list[Image]:
    """Every tenth frame or so of real clips."""
    pictures: list[Image] = []
    for clip in CLIPS:
        source = open_source(
            str(data / "videos" / clip),
            preprocessing=pipeline.network.preprocessing,
            labels=pipeline.labels,
        )
        every = [np.asarray(p.image) for p in source.pictures(lambda reason: None)]
        pictures += every[:: len(every) // PER_CLIP][:PER_CLIP]
    return pictures


def run(
    backend: Backend, pipeline: Pipeline, pictures: Sequence[Image]
) -> tuple[np.ndarray, list[list[Any]]]:
    """Scores [K, N], and answers per exit, of all frames at all exits."""
    task = pipeline.build_task()
    size = backend.sizes[0]
    scores: list[list[float]] = [[] for _ in range(backend.num_stages)]
    answers: list[list[Any]] = [[] for _ in range(backend.num_stages)]
    for begin in range(0, len(pictures), size):
        states: Sequence[Any] = pictures[begin : begin + size]
        for k in range(backend.num_stages):
            result = backend.submit(k, states).result()
            scores[k] += result.scores
            answers[k] += [
                task.target(task.prediction(result.answer, i)) for i in range(len(states))
            ]
            states = result.states
    return np.array(scores), answers


@pytest.mark.parametrize("policy", ["direct", "eenet"])
@pytest.mark.parametrize(
    ("kind", "device", "precision"),
    [
        ("openvino", "cpu", "float32"),
        ("openvino", "cpu", "bf16"),
        pytest.param("torch", "cuda:0", "float32", marks=CUDA),
        pytest.param("cuda", "cuda:0", "bf16", marks=CUDA),
    ],
)
@pytest.mark.parametrize("name", ["cifar10-resnet20", "street-segmentation"])
def test_answers_agree_with_eager_float32(
    data: Path, name: str, kind: str, device: str, precision: str, policy: str
) -> None:
    """On real frames, at every exit, within the stated bounds."""
    pipeline = load_pipeline(ROOT / "pipelines" / name)
    task = pipeline.build_task()
    scorer = load_policy(pipeline.policy_file(policy), pipeline.costs.fractions).scorer
    pictures = frames(pipeline, data)[:: 12 if task.gives_maps else 1]

    def opened(options: BackendOptions) -> Backend:
        return open_backend(pipeline, scorer, options)

    if (kind, precision) == ("openvino", "bf16") and pick_precision("auto") != "bf16":
        pytest.skip("this processor has no bf16")
    ours = opened(BackendOptions(kind, device, precision, batch=5))
    scores, answers = run(ours, pipeline, pictures)
    eager = BackendOptions("torch", "cpu", "float32", batch=5)
    expected, theirs = run(opened(eager), pipeline, pictures)
    same, mean, most = BOUNDS[precision]
    assert np.abs(scores - expected).mean() <= mean
    assert np.abs(scores - expected).max() <= most
    for k in range(len(expected)):
        agreed = [
            np.mean(np.asarray(a) == np.asarray(b))
            for a, b in zip(answers[k], theirs[k], strict=True)
        ]
        assert np.mean(agreed) >= same - (1e-3 if task.gives_maps else 0), k


def test_a_confidence_branch_scores_in_float32() -> None:
    """Of a network in bf16 what its branch says is not rounded to what bf16 can tell apart."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(8, 8, (0.5,) * 3, (0.25,) * 3)
    network = build(
        depth=8, exits=[1, 3], num_classes=4, preprocessing=preprocessing, heads="confidence"
    )
    network = network.to(torch.bfloat16).eval()
    stage = ScoredStage(network, ClassificationTask(labels="abcd"), ConfidenceBranch(), 0)
    with torch.inference_mode():
        scores = stage((torch.randint(0, 256, (400, 8, 8, 3), dtype=torch.uint8),)).scores
    assert scores.dtype == torch.float32
    assert len(scores.unique()) > 300


@pytest.mark.parametrize("method", ["msdnet", "eenet", "gate+search", "stopping+search"])
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_scores_are_computed_in_float32(
    toys: MakeToy, tmp_path: Path, kind: str, method: str
) -> None:
    """Of a stage in bf16 only convolutions and matrix products of the network itself are."""
    if pick_precision("auto") != "bf16":
        pytest.skip("this processor has no bf16")
    pipeline = load_pipeline(toys(kind))
    if method in pipeline.policies:
        scorer = load_policy(pipeline.policy_file(method), pipeline.costs.fractions).scorer
    else:
        images = torch.from_numpy(np.stack([np.asarray(p.image) for p in toy_pictures(60)]))
        labels = None if kind == "segmentation" else [p.label for p in toy_pictures(60)]
        readings = read_exits(pipeline.network, pipeline.build_task(), images, labels)
        scorer = fit_policy(method, readings.evidence, pipeline.costs.fractions).scorer
    stage = load_stages(pipeline.network, pipeline.build_task(), scorer, cache=tmp_path)[1]
    rows = [[d.get_length() for d in list(port.partial_shape)[1:]] for port in stage.inputs]
    stage.reshape({i: [2, *row] for i, row in enumerate(rows)})
    compiled = ov.Core().compile_model(stage, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    infos = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    in_bf16 = {i["layerType"].get() for i in infos if i["runtimePrecision"].get() == "bf16"}
    assert "Convolution" in in_bf16
    assert not in_bf16 & {"Concatenation", "Convert", "Gather", "Softmax", "StridedSlice", "TopK"}
