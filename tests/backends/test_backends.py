"""What every backend must do, on every device that it works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamexit.backends.backend import Backend
from streamexit.backends.opening import BackendOptions, open_backend
from streamexit.backends.openvino_backend import OpenVinoBackend
from streamexit.calibration.collect import collect_evidence
from streamexit.models.pipeline import Pipeline, load_pipeline
from streamexit.prediction import Classification, Segmentation
from streamexit.preprocessing import Image
from streamexit.scheduling.policy import load_policy
from streamexit.scheduling.scorers import score_all_exits
from streamexit.tasks.readout import HostAnswer
from streamexit.testing import TOY_LABELS, TOY_POLICIES, toy_pictures
from streamexit.training.labelled import LabelledImages
from tests.conftest import MakeToy

CUDA = pytest.mark.needs_cuda
KINDS = [
    ("torch", "cpu"),
    ("openvino", "cpu"),
    pytest.param(("torch", "cuda:0"), marks=CUDA),
    pytest.param(("cuda", "cuda:0"), marks=CUDA),
]
SIZE = 4
ROUNDING = 1e-4
"""Of float32 in another order of operations; TensorFloat-32 of GPUs needs ten times that."""

Opener = Callable[..., Backend]


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(kind))
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend and a device."""
    chosen: tuple[str, str] = request.param
    return chosen


def opened(
    pipeline: Pipeline, kind: tuple[str, str], *, policy: str | None = None, batch: int = SIZE
) -> Backend:
    """A backend in float32."""
    options = BackendOptions(*kind, precision="float32", batch=batch)
    scorer = load_policy(pipeline.policy_file(policy), pipeline.costs.fractions).scorer
    return open_backend(pipeline, scorer, options)


def tolerance(kind: tuple[str, str]) -> float:
    """How far scores may be from those of eager PyTorch on the CPU."""
    return ROUNDING if kind[1] == "cpu" else 10 * ROUNDING


def images(count: int, seed: int = 9) -> list[Image]:
    """Pictures of the toy network's size."""
    return [np.asarray(p.image) for p in toy_pictures(count, seed=seed)]


@pytest.mark.parametrize("policy", TOY_POLICIES)
def test_scores_are_those_of_calibration(
    toy_pipeline: Path, kind: tuple[str, str], policy: str
) -> None:
    """What a stage computes at run time is what the thresholds were fitted on."""
    pipeline = load_pipeline(toy_pipeline)
    pictures = LabelledImages(np.stack(images(20)), np.zeros(20, np.int64), TOY_LABELS)
    evidence = collect_evidence(pipeline.network, pipeline.build_task(), pictures, rows=7)
    scorer = load_policy(pipeline.policy_file(policy), pipeline.costs.fractions).scorer
    expected = score_all_exits(scorer, evidence)
    backend = opened(pipeline, kind, policy=policy, batch=20)
    states: Sequence[Any] = images(20)
    for k in range(backend.num_stages):
        result = backend.submit(k, states).result()
        assert result.scores == pytest.approx(expected[:, k].tolist(), abs=tolerance(kind))
        states = result.states


@pytest.fixture
def toy_backend(toy_pipeline: Path, kind: tuple[str, str]) -> Backend:
    """On the toy network, with the default policy."""
    return opened(load_pipeline(toy_pipeline), kind)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(2 * SIZE)), cut=st.integers(1, SIZE), depth=st.integers(1, 4))
def test_rows_of_several_batches_can_be_put_together_anew(
    toy_pipeline: Path,
    toy_backend: Backend,
    kind: tuple[str, str],
    order: list[int],
    cut: int,
    depth: int,
) -> None:
    """Survivors in any company, any number and any order get the answers of the plain network."""
    pipeline = load_pipeline(toy_pipeline)
    task, backend = pipeline.build_task(), toy_backend
    pictures = images(2 * SIZE)
    expected = _probabilities(pipeline, pictures)
    states: dict[int, Any] = dict(enumerate(pictures))
    for k in range(backend.num_stages):
        parts = [order[i : i + cut] for i in range(0, len(order), cut)]
        for begin in range(0, len(parts), depth):  # several in flight
            flying = [(p, backend.submit(k, [states[i] for i in p])) for p in parts[begin:][:depth]]
            for part, pending in flying:
                result = pending.result()
                assert pending.done
                for row, i in enumerate(part):
                    answer = task.prediction(result.answer, row)
                    assert isinstance(answer, Classification)
                    best = expected[k][i].max()
                    assert answer.probability == pytest.approx(best, abs=tolerance(kind))
                if k < backend.num_stages - 1:
                    states.update(zip(part, result.states, strict=True))


def _probabilities(pipeline: Pipeline, pictures: Sequence[Image]) -> list[np.ndarray]:
    with torch.inference_mode():
        outputs = pipeline.network.cpu()(torch.from_numpy(np.stack(pictures)))
    return [output.logits.softmax(1).numpy() for output in outputs]


def test_rows_that_leave_make_room(toy_backend: Backend) -> None:
    """Hundreds of frames go through a backend, in the same few places between two stages."""
    backend = toy_backend
    random = np.random.default_rng(0)
    places: dict[int, Any] = {}
    for turn in range(150):
        states: Sequence[Any] = images(SIZE, seed=turn)
        for k in range(backend.num_stages):
            result = backend.submit(k, states).result()
            last = k == backend.num_stages - 1
            stays = [not last and random.random() < 0.6 for _ in states]
            if last:
                break
            if isinstance(backend, OpenVinoBackend):  # of which a batch's rows share one
                places |= {id(block): block for block, _ in result.states}
            leaving = [s for s, stay in zip(result.states, stays, strict=True) if not stay]
            backend.release(leaving)
            states = [s for s, stay in zip(result.states, stays, strict=True) if stay]
            if not states:
                break
    assert len(places) <= (backend.num_stages - 1) * SIZE


def test_after_the_last_stage_nothing_is_carried_on(toy_backend: Backend) -> None:
    """There is no further stage that it could be for."""
    states: Sequence[Any] = images(SIZE)
    for k in range(toy_backend.num_stages):
        result = toy_backend.submit(k, states).result()
        states = result.states
    assert len(result.scores) == SIZE
    assert not states


@pytest.mark.parametrize("batch", [1, SIZE])
def test_pictures_that_must_not_be_written_are_read(
    toy_pipeline: Path, kind: tuple[str, str], batch: int
) -> None:
    """A source may yield parts of a file in memory; what comes out is the same."""
    backend = opened(load_pipeline(toy_pipeline), kind, batch=batch)
    pictures = images(batch)
    expected = backend.submit(0, pictures).result().scores
    for picture in pictures:
        picture.flags.writeable = False
    assert backend.submit(0, pictures).result().scores == expected


def test_maps_are_those_of_the_plain_network(toys: MakeToy, kind: tuple[str, str]) -> None:
    """Segmentation goes the same way; its maps come whole."""
    pipeline = load_pipeline(toys("segmentation"))
    task = pipeline.build_task()
    pictures = images(SIZE)
    with torch.inference_mode():
        outputs = pipeline.network(torch.from_numpy(np.stack(pictures)))
    states: Sequence[Any] = pictures
    backend = opened(pipeline, kind)
    for k, output in enumerate(outputs):
        result = backend.submit(k, states).result()
        plain: HostAnswer = (output.logits,)
        for row in range(SIZE):
            ours, theirs = task.prediction(result.answer, row), task.prediction(plain, row)
            assert isinstance(ours, Segmentation)
            assert isinstance(theirs, Segmentation)
            assert (
                ours.mask == theirs.mask
            ).mean() > 0.98  # ties of two classes may fall otherwise
        states = result.states
