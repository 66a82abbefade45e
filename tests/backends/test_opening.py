from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamexit.backends.backend import StageResult
from streamexit.backends.content import content_key
from streamexit.backends.cuda_backend import DEPTH, Pool, pool_places
from streamexit.backends.devices import pick_device
from streamexit.backends.opening import BackendOptions, device_costs, open_backend, profile_file
from streamexit.backends.openvino_backend import OpenVinoBackend
from streamexit.backends.profile import Profile, measure
from streamexit.backends.torch_backend import TorchBackend, stack_pictures
from streamexit.errors import ConfigurationError, OperationError, PipelineError
from streamexit.models.network import MultiExitNetwork, Stage
from streamexit.models.pipeline import load_pipeline
from streamexit.scheduling.policy import load_policy
from streamexit.scheduling.scorers import Certainty, MaxProbability
from streamexit.tasks.classification import ClassificationTask
from streamexit.testing import TOY_LABELS, TOY_PREPROCESSING, ManualClock, toy_network, toy_pictures
from tests.conftest import MakeToy, absent

TASK = ClassificationTask(labels=TOY_LABELS, top_k=2)


def test_auto_finds_a_device() -> None:
    """Without a GPU auto is the CPU, with one it is the first."""
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("tpu", ConfigurationError),
        ("", ConfigurationError),
        ("meta", ConfigurationError),
        ("cuda:99", OperationError),
    ],
)
def test_device_that_is_not_here(name: str, error: type[Exception]) -> None:
    """A device that cannot be had is refused with what can; one that may come is no mistake."""
    with pytest.raises(error, match="device: "):
        pick_device(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BackendOptions(kind="tensorrt"), "backend: 'tensorrt' is not one of auto, openvino"),
        (
            BackendOptions(kind="cuda", device="cpu"),
            "backend: cuda runs on cuda, not on device cpu",
        ),
        (BackendOptions(kind="torch", precision="bf16"), "precision: backend torch computes in"),
        (BackendOptions(kind="openvino", precision="fp8"), "precision: 'fp8' is not one of auto"),
    ],
)
def test_options_that_do_not_go_together(options: BackendOptions, message: str) -> None:
    """A refusal names the field, the value and what would be right."""
    with pytest.raises(ConfigurationError, match=message):
        options.resolve()


def test_on_a_processor_auto_is_openvino(toy_pipeline: Path) -> None:
    """Where nobody chose, a CPU gets OpenVINO, in the precision that it is best at."""
    pipeline = load_pipeline(toy_pipeline)
    scorer = load_policy(pipeline.policy_file(None), pipeline.costs.fractions).scorer
    options = BackendOptions(device="cpu", batch=3)
    backend = open_backend(pipeline, scorer, options)
    assert isinstance(backend, OpenVinoBackend)
    assert backend.sizes == (3, 3, 3)
    assert options.resolve().precision in backend.device


def test_converted_stages_are_found_by_content(tmp_path: Path) -> None:
    """The same network is converted once; another weight, task or scorer is another content."""

    def make(network: MultiExitNetwork) -> None:
        OpenVinoBackend(
            network.eval(),
            TASK,
            MaxProbability(),
            sizes=(1, 1, 1),
            precision="float32",
            cache=tmp_path,
        )

    torch.manual_seed(0)
    network = toy_network()
    make(network)
    (folder,) = (tmp_path / "openvino").iterdir()
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {"stage0.xml", "stage0.bin", "stage2.xml"} <= set(made)
    make(network)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    next(network.parameters()).data[0] += 1
    make(network)
    assert len(list((tmp_path / "openvino").iterdir())) == 2
    keys = {
        content_key(network, TASK, MaxProbability()),
        content_key(network, TASK, Certainty()),
        content_key(network, TASK, MaxProbability(), "another version"),
        content_key(network, ClassificationTask(labels=TOY_LABELS, top_k=3), MaxProbability()),
    }
    assert len(keys) == 4


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """A path where no folder can be made costs the conversion each time, and nothing else."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        (blocked / "openvino").mkdir(parents=True)
    backend = OpenVinoBackend(
        toy_network().eval(),
        TASK,
        MaxProbability(),
        sizes=(1, 1, 1),
        precision="float32",
        cache=blocked,
    )
    assert backend.num_stages == 3


class Greedy(nn.Module):
    """A trunk that has memory for two rows."""

    def forward(self, x: Tensor) -> Tensor:
        """Run, or fail as a device does whose memory is full."""
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x


class Full(nn.Module):
    """A trunk without memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Fail."""
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_shrinks_the_batch_and_keeps_the_frames() -> None:
    """Rows that do not fit run in smaller parts, all of them, and the backend says so."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    network = MultiExitNetwork([Stage(Greedy(), head, last=True)], TOY_PREPROCESSING).eval()
    backend = TorchBackend(network, TASK, MaxProbability(), device=torch.device("cpu"), sizes=(8,))
    pictures = np.stack([np.asarray(p.image) for p in toy_pictures(7)])
    result = backend.submit(0, list(pictures)).result()
    with torch.inference_mode():
        normal = network.normalise(torch.from_numpy(pictures))
        expected = head(normal).softmax(1).amax(1)
    assert result.scores == pytest.approx(expected.tolist())
    assert backend.notes == [
        "out of memory: stage 1 runs 3 rows at a time",
        "out of memory: stage 1 runs 1 rows at a time",
    ]


def test_pictures_that_were_decoded_on_the_device_are_put_together_there() -> None:
    """NumPy, which cannot see them, is not asked; one from the host may be among them."""
    device = torch.device("meta")
    there = torch.empty((8, 8, 3), dtype=torch.uint8, device=device)
    batch = stack_pictures([there, np.zeros((8, 8, 3), np.uint8)], device)
    assert (batch.shape, batch.dtype, batch.device) == ((2, 8, 8, 3), torch.uint8, device)


def test_a_single_row_without_memory_is_an_error() -> None:
    """There is nothing smaller to try."""
    network = MultiExitNetwork([Stage(Full(), nn.Identity(), last=True)], TOY_PREPROCESSING)
    backend = TorchBackend(network, TASK, MaxProbability(), device=torch.device("cpu"), sizes=(8,))
    with pytest.raises(torch.OutOfMemoryError):
        backend.submit(0, [np.asarray(p.image) for p in toy_pictures(4)])


@dataclass
class Timed:
    """A device whose batches take a known time, and rows of a known state."""

    clock: ManualClock
    size: int
    seconds: Callable[[int, int], float]
    num_stages: int = 2
    depth: int = 2
    device: str = "clockwork"
    notes: list[str] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = (self.size,) * self.num_stages

    def submit(self, stage: int, states: Sequence[Any]) -> _Wait:
        """Start the work."""
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        assert len(states) == self.size
        return _Wait(self, stage, len(states))

    def release(self, states: Sequence[Any]) -> None:
        """Nothing is kept."""


@dataclass
class _Wait:
    device: Timed
    stage: int
    rows: int
    done: bool = True
    states: list[Any] = field(default_factory=list)
    consumed: list[Any] = field(default_factory=list)

    def result(self) -> StageResult:
        """Let the time pass that it takes."""
        self.device.open -= 1
        self.device.release(self.consumed)
        self.device.clock.advance(self.device.seconds(self.stage, self.rows))
        return StageResult([0.5] * self.rows, (), self.states or [None] * self.rows)


@dataclass
class Bounded(Timed):
    """The same with the CUDA backend's room for rows between two stages."""

    num_stages: int = 3
    depth: int = DEPTH

    def __post_init__(self) -> None:
        super().__post_init__()
        places = pool_places(self.sizes, self.depth)
        self.pools = [Pool([], [], places) for _ in range(self.num_stages - 1)]

    def submit(self, stage: int, states: Sequence[Any]) -> _Wait:
        """Take places for what is handed on; those that are used up come back with the result."""
        last = stage == self.num_stages - 1
        taken = [] if last else self.pools[stage].take(len(states))
        wait = super().submit(stage, states)
        wait.states = [(stage, place) for place in taken]
        wait.consumed = list(states) if stage else []
        return wait

    def release(self, states: Sequence[Any]) -> None:
        """Places are free again."""
        for stage, place in states:
            self.pools[stage].free.append(place)


@pytest.mark.parametrize("num_stages", [2, 3, 5, 11])
def test_profile_needs_no_more_room_than_a_backend_has(num_stages: int) -> None:
    """However small the batches, and few the stages, that the places between them are counted for."""
    clock = ManualClock()
    pictures = [np.zeros((2, 2, 3), np.uint8)]
    found = measure(
        lambda size: Bounded(clock, size, lambda stage, rows: 0.004, num_stages),
        pictures,
        most=32,
        clock=clock,
    )
    assert max(found.milliseconds) == 32


def profiled(seconds: Callable[[int, int], float], most: int = 64) -> Profile:
    """A profile of clockwork."""
    clock = ManualClock()
    return measure(
        lambda size: Timed(clock, size, seconds),
        [np.zeros((2, 2, 3), np.uint8)],
        most=most,
        clock=clock,
    )


def test_profile_finds_the_knee() -> None:
    """A fixed cost per batch is worth sharing until it is small beside the cost per frame."""
    found = profiled(lambda stage, rows: (0.016 if stage == 0 else 0.0) + 0.004 * rows)
    assert found.milliseconds[1] == pytest.approx((20.0, 4.0))
    assert found.milliseconds[8] == pytest.approx((6.0, 4.0))
    assert found.sizes() == (32, 1)
    assert found.costs().per_exit == pytest.approx((4.5, 8.5))
    assert found.costs().unit == "milliseconds"


@pytest.mark.parametrize("most", [1, 2, 8])
def test_profile_stays_within_the_largest_batch(most: int) -> None:
    """However much larger batches would gain."""
    found = profiled(lambda stage, rows: 0.01, most=most)
    assert max(found.milliseconds) == most == found.sizes()[0]


def test_profile_does_not_try_batches_that_take_too_long() -> None:
    """A batch of 4 takes 0.2 s, and one of 8 would take more than a quarter of a second."""
    found = profiled(lambda stage, rows: 0.12 + 0.02 * rows)
    assert max(found.milliseconds) == 4


def test_profile_is_written_and_read(tmp_path: Path) -> None:
    """What `save` writes `load` reads; anything else is refused with the file's name."""
    found = Profile("clockwork", {1: (2.0, 1.0), 2: (1.0, 1.0)})
    found.save(tmp_path / "deep" / "p.json")
    assert Profile.load(tmp_path / "deep" / "p.json") == found
    (tmp_path / "bad.json").write_text('{"schema": "other"}')
    for name in ("bad.json", "absent.json"):
        with pytest.raises(PipelineError, match=name):
            Profile.load(tmp_path / name)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.needs_cuda)])
def test_compiled_stages_answer_like_plain_ones(
    toys: MakeToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """TorchInductor changes the speed, and for any number of rows not the scores."""
    if not shutil.which("g++"):
        absent("g++ (apt install g++)")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    pipeline = load_pipeline(toys(num_exits=2))
    scorer = load_policy(pipeline.policy_file("eenet"), pipeline.costs.fractions).scorer
    pictures = [np.asarray(p.image) for p in toy_pictures(7)]

    def scores(kind: str) -> list[list[float]]:
        backend = open_backend(pipeline, scorer, BackendOptions(kind, device, batch=4))
        found = []
        for rows in (7, 3, 1):
            states: Sequence[Any] = pictures[:rows]
            for k in range(backend.num_stages):
                result = backend.submit(k, states).result()
                states = result.states
                found.append(result.scores)
        return found

    compiled, plain = scores("torch-compiled"), scores("torch")
    assert [pytest.approx(row, abs=1e-4) for row in plain] == compiled


def test_memory_of_rows_that_left_is_used_again(toy_pipeline: Path) -> None:
    """However many batches go through, their features lie in the same few blocks."""
    pipeline = load_pipeline(toy_pipeline)
    scorer = load_policy(pipeline.policy_file(None), pipeline.costs.fractions).scorer
    backend = open_backend(pipeline, scorer, BackendOptions("openvino", "cpu", batch=4))
    pictures = [np.asarray(p.image) for p in toy_pictures(4)]
    blocks: dict[int, Any] = {}  # held, so that no other block can have the same id
    for _ in range(20):
        first = backend.submit(0, pictures).result()
        backend.release(first.states[:2])
        second = backend.submit(1, first.states[2:]).result()
        backend.release(second.states)
        blocks |= {id(block): block for block, _ in [*first.states, *second.states]}
    assert len(blocks) == 1 + 2  # of a full batch, and of two rows that run one by one


def test_milliseconds_need_a_profile_of_this_device(tmp_path: Path) -> None:
    """Without one the error says how to make it; with one they are the cumulative costs."""
    options = BackendOptions(device="cpu")
    with pytest.raises(PipelineError, match=f"streamexit profile {tmp_path} --device cpu$"):
        device_costs(tmp_path, options)
    Profile("clockwork", {1: (2.0, 1.0), 2: (1.0, 1.0)}).save(profile_file(tmp_path, options))
    assert device_costs(tmp_path, options).per_exit == (1.0, 2.0)
