"""Fixtures that several rooms of tests share: real data, real clips, a real broker."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import settings

from streamexit.testing import write_toy_pipeline

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI") == "true"

settings.register_profile("patient", settings(), deadline=None)  # a busy machine is no failure
settings.load_profile("patient")


def absent(what: str) -> None:
    """Skip where somebody lacks something; fail where CI should have it."""
    if IN_CI:
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"{what} is not here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CUDA tests run where there is a CUDA device; slow ones are spread, so that they are not all last."""
    slow = [item for item in items if "slow" in item.keywords]
    others = [item for item in items if "slow" not in item.keywords]
    for n, item in enumerate(slow):
        others.insert(n * (len(items) // len(slow)), item)
    items[:] = others
    if not torch.cuda.is_available():
        for item in items:
            if "needs_cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=pytest.mark.needs_cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that a backend must work on."""
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors: threads only get in each other's way, here and in commands that tests start."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_tests() -> None:
    """Converted networks are kept from run to run, for all processes, but not in the user's cache."""
    os.environ.setdefault("STREAMEXIT_CACHE", str(ROOT / ".pytest_cache" / "streamexit"))


@pytest.fixture(scope="session")
def _states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new path each time."""
    folder = tmp_path_factory.mktemp("states")
    return (folder / str(n) for n in itertools.count())


@pytest.fixture(autouse=True)
def _state_of_tests(_states: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What nodes keep over a restart is neither the user's nor another test's."""
    monkeypatch.setenv("STATE_DIRECTORY", str(next(_states)))


@pytest.fixture(scope="module", autouse=True)
def _secrets_of_tests() -> Iterator[None]:
    """What one file's tests have hidden may be a plain word to another's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamexit.redact._known", ())
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of shared real data; $STREAMEXIT_DATA names another."""
    folder = Path(os.environ.get("STREAMEXIT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        absent(f"the data folder {folder} (set STREAMEXIT_DATA)")
    return folder


MakeToy = Callable[..., Path]


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeToy:
    """Small complete pipeline folders, by kind and number of exits; do not change them, copy them.

    Fitting their policies takes seconds: each is made once, and all test processes share it.
    """
    base = tmp_path_factory.getbasetemp()
    of_all = base if worker_id == "master" else base.parent

    def toy(kind: str = "classification", *, num_exits: int = 3) -> Path:
        folder = of_all / "toys" / f"{kind}-{num_exits}" / "toy"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first one makes it, the others wait
            if not folder.exists():
                unfinished = folder.with_suffix(".unfinished")
                write_toy_pipeline(unfinished, num_exits=num_exits, kind=kind).rename(folder)
        return folder

    return toy


@pytest.fixture(scope="session")
def toy_pipeline(toys: MakeToy) -> Path:
    """The usual one: classification with three exits."""
    return toys()


@pytest.fixture(scope="session")
def cifar_pipeline() -> Path:
    """The pipeline that ships."""
    return ROOT / "pipelines" / "cifar10-resnet20"


MakeClip = Callable[..., Path]


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> MakeClip:
    """Encode a clip of moving stripes with PyAV."""
    folder = tmp_path_factory.mktemp("clips")

    def make(
        name: str = "clip.mp4",
        *,
        frames: int = 30,
        size: tuple[int, int] = (64, 48),
        rate: int = 25,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        start: int = 0,
    ) -> Path:
        path = folder / name
        width, height = size
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            for i in range(frames):
                picture = np.zeros((height, width, 3), np.uint8)
                picture[:, (np.arange(width) + 2 * i) % 16 < 8] = (200, 80, 5 * i % 256)
                shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
                shown.pts = start * rate + i
                container.mux(stream.encode(shown))
            container.mux(stream.encode(None))
        return path

    return make


@dataclass
class Mosquitto:
    """A mosquitto of this test's own, on loopback."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        """mqtt://..."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self, *, extra: str = "allow_anonymous true") -> None:
        """Start, and return once it accepts connections."""
        config = self.folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", extra, "persistence false"]
        lines.append("max_queued_messages 0")  # a slow subscriber of a test gets everything
        config.write_text("\n".join(lines) + "\n")
        binary = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        assert binary
        self.process = subprocess.Popen(
            [binary, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert self.process.stderr
        for line in self.process.stderr:  # it says so once it listens
            if b"running" in line:
                return
        raise AssertionError("mosquitto did not start")

    def kill(self) -> None:
        """Kill it as a crash would."""
        assert self.process
        self.process.kill()
        self.process.wait()
        assert self.process.stderr
        self.process.stderr.close()
        self.process = None


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A real broker, started."""
    if not shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin"):
        absent("mosquitto (apt install mosquitto)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    broker = Mosquitto(tmp_path, port)
    broker.start()
    yield broker
    if broker.process:
        broker.kill()
