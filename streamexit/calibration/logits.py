"""Traces of logits that somebody else's network has said: for comparing policies without it.

N: frames, K: exits, C: classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamexit.calibration.collect import read_outputs
from streamexit.calibration.trace import Kind, Trace, TraceHeader, TraceWriter
from streamexit.errors import DataError
from streamexit.exits import CostTable
from streamexit.models.network import StageOutput
from streamexit.tasks.classification import ClassificationTask

ROWS = 1024


def trace_logits(
    logits: Path,
    labels: Path | None,
    costs: Sequence[float],
    out: Path,
    *,
    kind: Kind = "images",
) -> Trace:
    """Write a trace.

    Args:
        logits: A .npy, floats [N, K, C]; mapped, never loaded whole.
        labels: A .npy, whole numbers [N] below C; without it the last exit's answers stand in.
        costs: [K], rising; what leaving at each exit costs, in GFLOPs or as a share of the last.
        out: The .npz to write.
        kind: See `TraceHeader`.

    Raises:
        DataError: The arrays cannot be read or do not fit each other.
        PipelineError: Costs that do not rise.
    """
    said = _load(logits)
    truth = None if labels is None else _load(labels)
    table = CostTable("gflops", tuple(costs))
    _check(said, truth, table, logits, labels)
    task = ClassificationTask(labels=[str(c) for c in range(said.shape[2])])
    header = TraceHeader(
        pipeline=logits.stem,
        data=str(logits.name),
        kind=kind,
        label_source="last exit" if truth is None else "truth",
        labels=task.labels,
        streams=(logits.stem,),
        costs=table,
    )
    with TraceWriter(out, header) as writer:
        for start in range(0, len(said), ROWS):
            rows = torch.from_numpy(np.array(said[start : start + ROWS], np.float32))
            if not torch.isfinite(rows).all():
                raise DataError(
                    f"{logits}: rows {start} to {start + len(rows)} hold NaN or infinity"
                )
            outputs = [StageOutput((), rows[:, k]) for k in range(rows.shape[1])]
            targets = None if truth is None else truth[start : start + ROWS].tolist()
            read = read_outputs(task, outputs, targets)
            index = np.arange(start, start + len(rows))
            writer.append(read.evidence, label=read.label, stream=index * 0, time=index * 1.0)
    return Trace.open(out)


def _load(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not an array of numpy.save: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: holds several arrays; save the one with numpy.save as .npy")
    return array


def _check(
    said: NDArray[Any],
    truth: NDArray[Any] | None,
    costs: CostTable,
    logits: Path,
    labels: Path | None,
) -> None:
    if said.ndim != 3 or said.dtype.kind != "f" or said.shape[2] < 2:
        raise DataError(
            f"{logits}: is {said.dtype} {list(said.shape)}; logits are floats [frames, exits, classes]"
        )
    if said.shape[1] != len(costs.per_exit):
        raise DataError(
            f"{logits}: has {said.shape[1]} exits, and costs are given for {len(costs.per_exit)}"
        )
    if truth is None:
        return
    if truth.shape != said.shape[:1] or truth.dtype.kind not in "iu":
        raise DataError(
            f"{labels}: is {truth.dtype} {list(truth.shape)}; labels are whole numbers [{len(said)}]"
        )
    if len(truth) and not 0 <= truth.min() <= truth.max() < said.shape[2]:
        raise DataError(
            f"{labels}: holds {truth.min()} .. {truth.max()}; classes are 0 .. {said.shape[2] - 1}"
        )
