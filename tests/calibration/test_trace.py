from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from streamexit.calibration.compare import scores_of
from streamexit.calibration.trace import SCHEMA, Trace, TraceHeader, TraceWriter
from streamexit.errors import DataError
from streamexit.exits import CostTable
from streamexit.scheduling.evidence import Calibration
from streamexit.scheduling.scorers import MaxProbability, score_all_exits
from streamexit.scheduling.thresholds import spread_all
from tests.scheduling.samples import synthetic

HEADER = TraceHeader(
    pipeline="made up",
    data="synthetic",
    kind="images",
    label_source="truth",
    labels=("a", "b", "c", "d"),
    streams=("one", "two"),
    costs=CostTable("gflops", (0.1, 0.2, 0.4)),
    provenance={"date": "today"},
)
ARRAYS = (
    "log_probabilities", "confidence", "quality", "branch", "predictions", "label", "stream",
    "time",
)  # fmt: skip


def write(path: Path, evidence: Calibration, *, chunk: int = 100) -> Path:
    """A trace of `evidence`, written in chunks; labels are what the first exit says."""
    label = evidence.distribution[:, 0].argmax(1).numpy()
    with TraceWriter(path, HEADER) as writer:
        for start in range(0, len(label), chunk):
            rows = torch.arange(start, min(start + chunk, len(label)))
            writer.append(
                evidence.rows(rows),
                label=label[rows.numpy()],
                stream=rows.numpy() % 2,
                time=rows.numpy() / 25,
            )
    return path


@pytest.fixture(scope="module")
def evidence() -> Calibration:
    """A thousand frames."""
    return synthetic(1000)[0]


@pytest.fixture
def path(tmp_path: Path, evidence: Calibration) -> Path:
    """A written trace."""
    return write(tmp_path / "deep" / "t.npz", evidence)


def test_what_was_written_is_read(path: Path, evidence: Calibration) -> None:
    """A trace written in chunks holds the frames in order, to half precision of the logarithm."""
    trace = Trace.open(path)
    assert trace.header == HEADER
    assert (len(trace), trace.num_exits) == (1000, 3)
    loaded = trace.load(np.arange(1000))
    torch.testing.assert_close(loaded.distribution, evidence.distribution, atol=1e-6, rtol=5e-3)
    assert torch.equal(loaded.confidence, evidence.confidence)
    assert torch.equal(loaded.quality, evidence.quality)
    assert loaded.branch is not None
    assert evidence.branch is not None
    assert torch.equal(loaded.branch, evidence.branch)
    assert loaded.right_probability is not None
    assert trace.label is not None
    label = trace.label.astype(np.int64)
    for row in (0, 99, 100, 999):
        assert torch.equal(loaded.right_probability[row], loaded.distribution[row, :, label[row]])
    assert np.array_equal(trace.predictions, evidence.distribution.argmax(2).numpy())
    assert np.array_equal(trace.stream, np.arange(1000) % 2)
    assert np.array_equal(trace.time, np.arange(1000) / 25)
    some = trace.load(np.array([7, 3, 999]))
    assert torch.equal(some.confidence, evidence.confidence[[7, 3, 999]])


def test_near_certain_answers_stay_apart(tmp_path: Path, evidence: Calibration) -> None:
    """Probabilities of 1e-9 and 1e-12 are told apart, and 0 stays 0."""
    p = evidence.distribution.clone()
    p[:4, 0] = torch.tensor([1.0, 1e-9, 1e-12, 0.0])
    changed = Calibration(p, evidence.confidence, evidence.quality, evidence.branch)
    loaded = Trace.open(write(tmp_path / "t.npz", changed)).load(np.arange(4)).distribution[0, 0]
    assert loaded.tolist() == pytest.approx([1, 1e-9, 1e-12, 0], rel=0.02, abs=0)


def test_numpy_can_read_it(path: Path) -> None:
    """`numpy.load` opens a trace, and its arrays are the mapped ones; the checksums are right."""
    trace = Trace.open(path)
    with np.load(path) as archive:
        for name in ARRAYS:
            assert np.array_equal(archive[name], getattr(trace, name))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("trace.json"))["schema"] == SCHEMA


def test_arrays_stay_on_disk(path: Path) -> None:
    """An opened trace is mapped, not read, and cannot be written through."""
    trace = Trace.open(path)
    for name in ARRAYS:
        array = getattr(trace, name)
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_chunks_are_the_whole(path: Path, evidence: Calibration) -> None:
    """Chunk by chunk a trace gives the same frames and scores as at once, whatever the order."""
    trace = Trace.open(path)
    rows = np.random.default_rng(0).permutation(1000)[:900].astype(np.int64)
    parts = list(trace.chunks(rows, size=128))
    assert [(part.start, part.stop) for part, _ in parts][-2:] == [(768, 896), (896, 900)]
    whole = trace.load(rows)
    for part, chunk in parts:
        assert torch.equal(chunk.distribution, whole.distribution[part])
        assert torch.equal(chunk.quality, whole.quality[part])
    expected = spread_all(score_all_exits(MaxProbability(), whole).double().numpy())
    assert scores_of(MaxProbability(), trace, rows) == pytest.approx(expected)


def test_last_chunk_may_be_shorter_than_there_are_exits(path: Path) -> None:
    """A chunk of one or two frames at the end is read like any other."""
    trace = Trace.open(path)
    sizes = [len(chunk.quality) for _, chunk in trace.chunks(np.arange(257), size=256)]
    assert sizes == [256, 1]


def test_trace_longer_than_a_chunk_is_scored_alike(tmp_path: Path) -> None:
    """Scores of more frames than a chunk holds are those of all frames at once."""
    many, _ = synthetic(8_192 + 700, seed=2)
    trace = Trace.open(write(tmp_path / "t.npz", many, chunk=5000))
    rows = np.arange(len(trace))
    assert len(list(trace.chunks(rows))) == 2
    expected = spread_all(score_all_exits(MaxProbability(), trace.load(rows)).double().numpy())
    assert np.array_equal(scores_of(MaxProbability(), trace, rows), expected)


def test_error_leaves_nothing_behind(tmp_path: Path, evidence: Calibration) -> None:
    """When writing breaks off, neither a trace nor its parts remain, and an older one stays."""
    old = write(tmp_path / "t.npz", evidence)
    content = old.read_bytes()
    first, nobody = evidence.rows(torch.arange(10)), np.zeros(10, np.int64)

    def interrupted() -> None:
        with TraceWriter(old, HEADER) as writer:
            writer.append(first, label=nobody, stream=nobody, time=nobody / 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == ["t.npz"]
    assert old.read_bytes() == content


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    """A trace without frames is refused, and leaves no file."""
    with (
        pytest.raises(DataError, match=r"t\.npz.*no frames"),
        TraceWriter(tmp_path / "t.npz", HEADER),
    ):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.9, 0.999])
def test_truncated_trace_is_refused(path: Path, keep: float) -> None:
    """A trace cut short anywhere is refused by name."""
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(DataError, match=r"t\.npz"):
        Trace.open(path)


def test_missing_trace_is_refused(tmp_path: Path) -> None:
    """A path without a file, or to a folder, is refused by name."""
    with pytest.raises(DataError, match=r"none\.npz: cannot be read"):
        Trace.open(tmp_path / "none.npz")
    with pytest.raises(DataError, match="cannot be read"):
        Trace.open(tmp_path)


def test_foreign_files_are_refused(tmp_path: Path, path: Path) -> None:
    """Text, another .npz, compressed arrays, another schema and unfitting arrays are refused."""
    files = {name: tmp_path / f"{name}.npz" for name in ("text", "npz", "packed", "schema", "cut")}
    files["text"].write_text("not a trace\n" * 100)
    np.savez(files["npz"], label=np.arange(5))
    with np.load(path) as arrays, zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("trace.json"))
        np.savez_compressed(files["packed"], **{name: arrays[name] for name in ARRAYS})
        with zipfile.ZipFile(files["packed"], "a") as packed:
            packed.writestr("trace.json", json.dumps(header))
        with zipfile.ZipFile(files["schema"], "w") as other:
            other.writestr("trace.json", json.dumps({**header, "schema": "streamexit.trace/9"}))
        with zipfile.ZipFile(files["cut"], "w") as other:
            costs = {"unit": "gflops", "per_exit": [0.1, 0.4]}
            other.writestr("trace.json", json.dumps({**header, "costs": costs}))
            for info in archive.infolist()[1:]:
                other.writestr(info.filename, archive.read(info.filename))
    for name, said in (
        ("text", "not a trace"),
        ("npz", "not a trace"),
        ("packed", "compressed"),
        ("schema", "schema"),
        ("cut", "do not fit each other"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            Trace.open(files[name])
        assert str(files[name]) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["log_probabilities", "confidence", "quality", "branch"])
def test_numbers_that_are_none_are_refused(path: Path, name: str, value: float) -> None:
    """NaN and infinities in a trace are found when their frames are loaded; the file is named."""
    array = getattr(Trace.open(path), name)
    with path.open("r+b") as file:
        file.seek(array.offset)
        file.write(np.array([value], array.dtype).tobytes())
    trace = Trace.open(path)
    with pytest.raises(DataError, match=r"t\.npz.*NaN"):
        trace.load(np.arange(100))
    assert len(trace.load(np.arange(100, 200)).quality) == 100


WRITE_AND_COMPARE = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from streamexit.calibration.compare import compare
from streamexit.calibration.trace import Trace
import streamexit.scheduling.methods

def private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))

torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_DATA, (private() + int(sys.argv[2]),) * 2)
trace = Trace.open(Path(sys.argv[1]))
found = compare(trace, calibration=None, methods=["msdnet", "direct"], budgets=[0.6], seeds=1)
cost = [method.outcomes[0.6][0].cost for method in found.methods]
print(len(trace), found.acceptance_frames, *cost)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_comparing_a_million_frames_takes_little_memory(tmp_path: Path) -> None:
    """A trace of a million frames is compared in less memory than its own size.

    What counts are the process's private pages: those of the mapped file are the system's to take
    back, though they too count as resident.
    """
    block, labels = synthetic(10_000, classes=100, skills=(3.0, 4.0, 6.0))
    path, random = tmp_path / "million.npz", np.random.default_rng(0)
    header = TraceHeader(
        "made up", "synthetic", "images", "truth", tuple(map(str, range(100))), ("one",),
        HEADER.costs,
    )  # fmt: skip
    with TraceWriter(path, header) as writer:
        for i in range(100):
            order = random.permutation(10_000)
            writer.append(
                block.rows(torch.from_numpy(order)),
                label=labels[order],
                stream=np.zeros(10_000, np.int64),
                time=np.arange(10_000) + 10_000.0 * i,
            )
    size = path.stat().st_size
    assert size > 600e6
    done = subprocess.run(
        [sys.executable, "-c", WRITE_AND_COMPARE, str(path), str(size)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames, judged, *costs = map(float, done.stdout.split())
    assert (frames, judged) == (1_000_000, 500_000)
    assert costs == pytest.approx([0.6, 0.6], rel=0.005)
