"""Traces: what every exit said about every frame, in a file, so that policies are compared on it.

A trace is an uncompressed .npz (a zip of .npy arrays, readable by `numpy.load`) and a JSON header.
Because nothing is compressed, the arrays are mapped into memory where they lie in the zip: opening
a trace of a million frames reads a few kilobytes.

N: frames, K: exits, C: classes, F: confidence features.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from streamexit.errors import DataError
from streamexit.exits import CostTable
from streamexit.scheduling.evidence import Calibration

Kind = Literal["images", "stream"]
SCHEMA = "streamexit.trace/1"
_HEADER = "trace.json"
_ZIP_LOCAL_HEADER = struct.Struct("<26xHH")


@dataclass(frozen=True)
class TraceHeader:
    """What a trace is of.

    Attributes:
        pipeline: Name of the network.
        data: What was run through it, as the user named it.
        kind: "images", independent pictures, or "stream", frames in time order.
        label_source: "truth", or "last exit": its answers stand in where nobody knows the truth.
        labels: Class names.
        streams: Stream ids; a frame's `stream` counts in this list.
        costs: Per exit.
        provenance: Version, date and the like.
    """

    pipeline: str
    data: str
    kind: Kind
    label_source: Literal["truth", "last exit"]
    labels: tuple[str, ...]
    streams: tuple[str, ...]
    costs: CostTable
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """An opened trace; its arrays stay on disk until they are indexed.

    Attributes:
        path: Where it lies.
        header: See `TraceHeader`.
        log_probabilities: float16 [N, K, C]; a logarithm keeps near-certain answers apart, which
            probabilities of half precision would not.
        confidence: float32 [N, K, F].
        quality: float32 [N, K] in [0, 1]; see `Judgement`.
        branch: float32 [N, K] from networks with a confidence branch, else None.
        predictions: int32 [N, K], the most probable class at each exit, or the largest.
        label: int32 [N], where a frame has one right answer, else None.
        counts: int32 [N, K, 3, C] of segmentation (see `Judgement`), else None.
        stream: int32 [N], index into `header.streams`.
        time: float64 [N], seconds on the stream's time line.
    """

    path: Path
    header: TraceHeader
    log_probabilities: NDArray[np.float16]
    confidence: NDArray[np.float32]
    quality: NDArray[np.float32]
    branch: NDArray[np.float32] | None
    predictions: NDArray[np.int32]
    label: NDArray[np.int32] | None
    counts: NDArray[np.int32] | None
    stream: NDArray[np.int32]
    time: NDArray[np.float64]

    @classmethod
    def open(cls, path: str | Path) -> Trace:
        """Map a trace.

        Raises:
            DataError: Not a trace, truncated, or its arrays do not fit each other.
        """
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as z:
                header = _parse_header(json.loads(z.read(_HEADER)))
                arrays = {
                    info.filename.removesuffix(".npy"): _map_member(path, info)
                    for info in z.infolist()
                    if info.filename.endswith(".npy")
                }
            optional = dict.fromkeys(("branch", "label", "counts"))
            trace = cls(path, header, **{**optional, **arrays})  # type: ignore[arg-type]
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a trace of streamexit record: {error}") from error
        trace._check()
        return trace

    def __len__(self) -> int:
        return len(self.time)

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.header.costs.per_exit)

    @property
    def groups(self) -> NDArray[np.int32]:
        """[N]: the frame's class, or where it has no one class, what the last exit sees most of."""
        return self.predictions[:, -1] if self.label is None else self.label

    def load(self, rows: NDArray[np.int64]) -> Calibration:
        """The evidence of the frames at `rows`, in memory.

        Raises:
            DataError: It holds NaN or infinity.
        """
        try:
            distribution = torch.from_numpy(self.log_probabilities[rows]).float().exp()
            right = None
            if self.label is not None:
                truth = torch.from_numpy(self.label[rows]).long()[:, None, None]
                right = distribution.gather(2, truth.expand(-1, self.num_exits, 1)).squeeze(2)
            return Calibration(
                distribution,
                torch.from_numpy(np.asarray(self.confidence[rows])),
                torch.from_numpy(np.asarray(self.quality[rows])),
                None if self.branch is None else torch.from_numpy(np.asarray(self.branch[rows])),
                right,
            )
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error

    def chunks(
        self, rows: NDArray[np.int64], size: int = 8192
    ) -> Iterator[tuple[slice, Calibration]]:
        """The frames at `rows`, a chunk at a time: (where in `rows`, their evidence)."""
        for start in range(0, len(rows), size):
            part = slice(start, min(start + size, len(rows)))
            yield part, self.load(rows[part])

    def _check(self) -> None:
        n, k = self.quality.shape if self.quality.ndim == 2 else (-1, -1)
        fits = k == len(self.header.costs.per_exit)
        per_exit = (self.confidence, self.predictions, self.branch, self.counts)
        for array in (self.log_probabilities, *per_exit):
            fits &= array is None or array.shape[:2] == (n, k)
        fits &= all(a is None or len(a) == n for a in (self.label, self.stream, self.time))
        classes = len(self.header.labels)
        fits &= self.counts is None or self.counts.shape[2:] == (3, classes)
        fits &= self.log_probabilities.ndim == 3 and self.log_probabilities.shape[2] == classes
        if n and self.label is not None:
            fits &= self.label.min() >= 0 and self.label.max() < classes
        if not fits:
            raise DataError(f"{self.path}: its arrays, labels and costs do not fit each other")


class TraceWriter:
    """Writes a trace bit by bit; the file appears, whole, when the writer is closed without error.

    Args:
        path: The .npz to write.
        header: See `TraceHeader`.
    """

    def __init__(self, path: Path, header: TraceHeader) -> None:
        self.header = header
        self._path = path
        if path.is_dir() or not path.name:
            raise DataError(f"{path}: is a folder; name the trace's file, as in out/trace.npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from error
        self._files: dict[str, IO[bytes]] = {}
        self._shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self.frames = 0

    def append(
        self,
        evidence: Calibration,
        *,
        label: NDArray[np.integer[Any]] | None,
        stream: NDArray[np.integer[Any]],
        time: NDArray[np.floating[Any]],
        counts: NDArray[np.int32] | None = None,
    ) -> None:
        """Add N frames.

        Args:
            evidence: See `Calibration`.
            label: [N]; None at all frames or at none.
            stream: [N], index into the header's streams.
            time: [N], seconds.
            counts: [N, K, 3, C]; None at all frames or at none.
        """
        logs = evidence.distribution.log().clamp_min(-60000.0)
        columns: dict[str, NDArray[Any]] = {
            "log_probabilities": logs.numpy().astype(np.float16),
            "confidence": evidence.confidence.numpy().astype(np.float32),
            "quality": evidence.quality.numpy().astype(np.float32),
            "predictions": evidence.distribution.argmax(2).numpy().astype(np.int32),
            "stream": np.asarray(stream, np.int32),
            "time": np.asarray(time, np.float64),
        }
        if label is not None:
            columns["label"] = np.asarray(label, np.int32)
        if counts is not None:
            columns["counts"] = np.asarray(counts, np.int32)
        if evidence.branch is not None:
            columns["branch"] = evidence.branch.numpy().astype(np.float32)
        for name, values in columns.items():
            if name not in self._files:
                self._files[name] = (self._folder / name).open("wb")
                self._shapes[name] = (values.dtype, values.shape[1:])
            self._files[name].write(np.ascontiguousarray(values).tobytes())
        self.frames += len(columns["time"])

    def close(self) -> None:
        """Put the file together.

        Raises:
            DataError: No frame was added, or the file cannot be written.
        """
        try:
            self._close()
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written: {error.strerror}") from error
        finally:
            self.abandon()

    def _close(self) -> None:
        if not self.frames:
            raise DataError(f"{self._path}: nothing to record; the source has no frames")
        unfinished = self._folder / "whole"
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED, allowZip64=True) as z:
            content = {"schema": SCHEMA, "frames": self.frames, **asdict(self.header)}
            z.writestr(_HEADER, json.dumps(content))
            for name, file in self._files.items():
                file.close()
                self._store(z, name)
        unfinished.replace(self._path)

    def abandon(self) -> None:
        """Leave no trace, finished or not, beyond what `close` has put in place."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _store(self, z: zipfile.ZipFile, name: str) -> None:
        dtype, rest = self._shapes[name]
        with (
            z.open(f"{name}.npy", "w", force_zip64=True) as member,
            (self._folder / name).open("rb") as raw,
        ):
            layout = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False}
            npy.write_array_header_2_0(member, {**layout, "shape": (self.frames, *rest)})
            shutil.copyfileobj(raw, member, 1 << 20)
        os.unlink(self._folder / name)


def _parse_header(content: Any) -> TraceHeader:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    return TraceHeader(
        pipeline=content["pipeline"],
        data=content["data"],
        kind=content["kind"],
        label_source=content["label_source"],
        labels=tuple(content["labels"]),
        streams=tuple(content["streams"]),
        costs=CostTable(content["costs"]["unit"], tuple(content["costs"]["per_exit"])),
        provenance=content["provenance"],
    )


def _map_member(path: Path, info: zipfile.ZipInfo) -> NDArray[Any]:
    """A read-only view of an uncompressed .npy inside a zip."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name_length, extra_length = _ZIP_LOCAL_HEADER.unpack(file.read(_ZIP_LOCAL_HEADER.size))
        begin = info.header_offset + _ZIP_LOCAL_HEADER.size + name_length + extra_length
        file.seek(begin)
        head = BytesIO(file.read(min(info.file_size, 4096)))
        version = npy.read_magic(head)
        if version != (2, 0):
            raise ValueError(f"{info.filename} has npy version {version}")
        shape, fortran, dtype = npy.read_array_header_2_0(head)
        if fortran or path.stat().st_size < begin + head.tell():
            raise ValueError(f"{info.filename} is truncated")
        return np.memmap(path, dtype, "r", offset=begin + head.tell(), shape=shape)
