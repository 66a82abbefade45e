from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from streamexit.backends.torch_backend import TorchBackend, pick_device
from streamexit.calibration.collect import collect_evidence
from streamexit.errors import ConfigurationError
from streamexit.models.pipeline import load_pipeline
from streamexit.scheduling.policy import load_policy
from streamexit.scheduling.scorers import score_all_exits
from streamexit.testing import TOY_LABELS, TOY_POLICIES, toy_pictures
from streamexit.training.labelled import LabelledImages


@pytest.mark.parametrize("policy_name", TOY_POLICIES)
def test_scores_are_those_of_calibration(
    toy_pipeline: Path, device: torch.device, policy_name: str
) -> None:
    """What a stage computes at run time is what the thresholds were fitted on."""
    pipeline = load_pipeline(toy_pipeline)
    task = pipeline.build_task()
    policy = load_policy(pipeline.policy_file(policy_name), pipeline.costs.fractions)
    images = [p.image for p in toy_pictures(20, seed=9)]
    pictures = LabelledImages(np.stack(images), np.zeros(20, np.int64), TOY_LABELS)
    evidence = collect_evidence(pipeline.network, task, pictures, rows=7)
    expected = score_all_exits(policy.scorer, evidence)
    backend = TorchBackend(pipeline.network, task, policy.scorer, device=device)
    states: list[object] = list(images)
    for k in range(backend.num_stages):
        result = backend.submit(k, states).result()
        assert result.scores == pytest.approx(expected[:, k].tolist(), abs=1e-4)
        states = list(result.states)


def test_auto_finds_a_device() -> None:
    """Without a GPU auto is the CPU, with one it is the first."""
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["tpu", "", "cuda:99", "meta"])
def test_device_that_is_not_here(name: str) -> None:
    """A device that cannot be had is refused with what can."""
    with pytest.raises(ConfigurationError, match="device: "):
        pick_device(name)
