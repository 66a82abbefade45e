"""Segmentation: one label per pixel; an exit is still per frame.

A frame leaves with its whole map, so what a scorer sees are statistics of the map. Where the papers'
equations speak of an answer's probability of being right, here the quality of a map is meant: the
mean over classes of intersection over union with the truth (or with the last exit's map, where
there is no truth), a number in [0, 1] where classification has 0 or 1.

N: rows, C: classes, K: exits so far, h, w: rows and columns of the logits, H, W: of the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.prediction import VOID, Prediction, Segmentation
from streamexit.preprocessing import Preprocessing
from streamexit.tasks.readout import (
    HostAnswer,
    Judgement,
    Readout,
    Target,
    certainty,
    rank_agreement,
)

QUANTILES = (0.05, 0.25)
"""Of the pixels' largest probabilities: how sure the network is where it is least sure."""


class SegmentationTask:
    """Statistics of the maps for the scorer, whole maps for the answers.

    Args:
        labels: Class names in index order, 254 at most.
        preprocessing: Of the pipeline: the answers' maps have the size of the network's input.
        confidence_floor: A pixel below this largest probability counts as unsure.
    """

    kind = "segmentation"
    gives_maps = True

    def __init__(
        self, *, labels: Sequence[str], preprocessing: Preprocessing, confidence_floor: float = 0.7
    ) -> None:
        self.labels = tuple(labels)
        self._preprocessing = preprocessing
        self._size = (preprocessing.height, preprocessing.width)
        self._floor = confidence_floor

    @classmethod
    def from_options(
        cls, options: dict[str, Any], labels: Sequence[str], preprocessing: Preprocessing
    ) -> Self:
        """From a pipeline's `task` mapping.

        Raises:
            PipelineError: A value that is not allowed.
        """
        floor = options.get("confidence_floor", 0.7)
        if not isinstance(floor, int | float) or not 0 < floor < 1:
            raise PipelineError(f"task.confidence_floor: {floor!r} must lie between 0 and 1")
        if len(labels) >= VOID:
            raise PipelineError(f"labels: {len(labels)} are too many; a map has room for 254")
        return cls(labels=labels, preprocessing=preprocessing, **options)

    def read(self, logits: Tensor, carry: Tensor | None) -> Readout:
        """Turn logits [N, C, h, w] into a `Readout`.

        Confidence columns, all of them means over pixels of what classification has per frame: the
        largest probability; 1 + sum p log p / log C; the share of exits so far that agree with the
        pixel's most frequent class; the share that agree with this one without a break. Then low
        quantiles of the largest probability (`QUANTILES`); the share of pixels above the confidence
        floor; the share that the exit before gave the same class (1 at the first exit); the same
        on the pixels next to a class boundary in either map. `carry` holds the maps so far, uint8
        [N, K, h, w]. The distribution is the mean probability of each class: its expected share.
        """
        p = functional.softmax(logits.float(), dim=1)
        sure, current = p.max(1)
        current = current.to(torch.uint8)[:, None]
        maps = current if carry is None else torch.cat([carry, current], dim=1)
        votes, run = rank_agreement(maps)
        means = torch.stack(
            [
                sure.mean((1, 2)),
                certainty(p).mean((1, 2)),
                votes.mean((1, 2)),
                run.mean((1, 2)),
            ],
            dim=1,
        )
        above = (sure >= self._floor).float().mean((1, 2))[:, None]
        confidence = torch.cat(
            [means, _low_quantiles(sure.flatten(1)), above, _agreement(maps)], dim=1
        ).clamp(0, 1)
        return Readout((logits,), p.mean((2, 3)), confidence, maps)

    def for_host(self, answer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps uint8 [N, H, W] instead of logits."""
        return (self._masks(answer[0]),)

    def _masks(self, logits: Tensor) -> Tensor:
        """Class indices uint8 [N, H, W] at the input's size, from logits [N, C, h, w].

        Logits are brought to that size before the largest is taken, which keeps edges that a map of a
        quarter of the size would lose.
        """
        logits = logits.float()
        if logits.shape[2:] != self._size:
            logits = functional.interpolate(
                logits, self._size, mode="bilinear", align_corners=False
            )
        # On CPUs `max` over a leading dimension takes a fifth of `argmax`'s time.
        return torch.stack([one.max(0).indices.to(torch.uint8) for one in logits])

    def prediction(
        self, answer: HostAnswer, row: int, frame_size: tuple[int, int] | None = None
    ) -> Segmentation:
        """The answer of `row`; `answer` is (logits [N, C, h, w],), or what `for_host` made of it.

        Where `fit: letterbox` has filled the input's sides, nothing is seen: those pixels are `VOID`
        and have no part in the shares.
        """
        part = answer[0][row : row + 1]
        mask = (self._masks(part) if part.ndim == 4 else part)[0].cpu().numpy()
        if frame_size is not None:
            shown = self._preprocessing.overlap(*frame_size).of_input
            whole, mask = mask, np.full_like(mask, VOID)
            mask[shown] = whole[shown]
        counts = np.bincount(mask.ravel(), minlength=VOID + 1)[: len(self.labels)]
        pixels = counts / max(counts.sum(), 1)
        shares = tuple(
            (label, round(float(s), 6)) for label, s in zip(self.labels, pixels, strict=True)
        )
        return Segmentation(shares, mask)

    def as_target(self, label: Target | None) -> NDArray[np.uint8] | None:
        """A map as it is; the class of a whole picture says nothing of its pixels."""
        return label if isinstance(label, np.ndarray) else None

    def target(self, prediction: Prediction) -> NDArray[np.uint8]:
        """The answer's map."""
        assert isinstance(prediction, Segmentation)
        return prediction.mask

    def judge(self, prediction: Prediction, target: Target) -> Judgement:
        """Mean intersection over union of the classes that occur in either map; 1 if none does."""
        counts = self.counts(prediction, target)
        return Judgement(mean_iou(counts), counts)

    def counts(self, prediction: Prediction, target: Target) -> NDArray[np.int32]:
        """Pixels per class, [3, C]: in both maps, in the answer's, in the target's.

        Where the target has no label or the answer shows nothing, a pixel counts nowhere.
        """
        assert isinstance(prediction, Segmentation)
        mask = _at_size_of(prediction.mask, target)
        known = (target != VOID) & (mask != VOID)
        ours, truth = mask[known], target[known]
        classes = len(self.labels)
        pixels = [np.bincount(m, minlength=classes) for m in (ours[ours == truth], ours, truth)]
        return np.stack(pixels).astype(np.int32)

    def tally(self) -> SegmentationTally:
        """An empty one."""
        return SegmentationTally(self)

    def training_rows(
        self, logits: Sequence[Tensor], labels: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Each pixel that has a label as a row.

        Args:
            logits: K tensors [N, C, h, w].
            labels: uint8 [N, H, W]; the nearest pixel's counts for each of the logits' pixels.
        """
        size = logits[0].shape[2:]
        small = functional.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0]
        known = small != VOID
        return [z.permute(0, 2, 3, 1)[known] for z in logits], small[known].long()


class SegmentationTally:
    """Sums of pixel counts, and the figures made of them."""

    def __init__(self, task: SegmentationTask) -> None:
        self._task = task
        self._counts = np.zeros((3, len(task.labels)), np.int64)

    def add(self, prediction: Prediction, target: Target) -> None:
        """Count one map."""
        self._counts += self._task.counts(prediction, target)

    def figures(self) -> dict[str, Any]:
        """`miou` over the run's pixels, `pixel_accuracy`, `iou` per class; None without pixels."""
        both, _, truth = self._counts
        iou = intersection_over_union(self._counts)
        return {
            "miou": mean_iou(self._counts) if truth.sum() else None,
            "pixel_accuracy": float(both.sum() / truth.sum()) if truth.sum() else None,
            "iou": {
                label: None if math.isnan(value) else float(value)
                for label, value in zip(self._task.labels, iou, strict=True)
            },
        }


def intersection_over_union(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Per class [C], from [3, C] as of `SegmentationTask.counts`; NaN for classes nowhere seen."""
    both, ours, truth = counts.astype(float)
    union = ours + truth - both
    iou: NDArray[np.float64] = np.full(union.shape, np.nan)
    np.divide(both, union, out=iou, where=union > 0)
    return iou


def mean_iou(counts: NDArray[Any]) -> float:
    """Mean over the classes that were seen; 1 if none was."""
    iou = intersection_over_union(counts)
    seen = iou[~np.isnan(iou)]
    return float(seen.mean()) if len(seen) else 1.0


def _low_quantiles(values: Tensor) -> Tensor:
    """The `QUANTILES` of values [N, n], interpolated linearly, [N, 2].

    What `torch.quantile` gives, in operations that every backend has; only the lowest are sorted.
    """
    last = values.shape[1] - 1
    lowest = values.topk(min(int(QUANTILES[-1] * last) + 2, last + 1), largest=False).values
    columns = []
    for share in QUANTILES:
        below = int(share * last)
        low, high = lowest[:, below], lowest[:, min(below + 1, last)]
        columns.append(low + (share * last - below) * (high - low))
    return torch.stack(columns, dim=1)


def _agreement(maps: Tensor) -> Tensor:
    """[N, 2]: how far the last two maps agree, everywhere and next to class boundaries."""
    if maps.shape[1] == 1:
        return maps.new_ones((maps.shape[0], 2), dtype=torch.float32)
    before, now = maps[:, -2], maps[:, -1]
    same = before == now
    edge = _next_to_boundary(before) | _next_to_boundary(now)
    pixels = edge.sum((1, 2))
    at_edges = (same & edge).sum((1, 2)) / pixels.clamp_min(1)
    at_edges = torch.where(pixels > 0, at_edges, torch.ones_like(at_edges))
    return torch.stack([same.float().mean((1, 2)), at_edges], dim=1)


def _next_to_boundary(map_: Tensor) -> Tensor:
    """Pixels [N, h, w] with a neighbour, above, below, left or right, of another class."""
    edge = torch.zeros_like(map_, dtype=torch.bool)
    down, right = map_[:, 1:] != map_[:, :-1], map_[:, :, 1:] != map_[:, :, :-1]
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    edge[:, :, 1:] |= right
    edge[:, :, :-1] |= right
    return edge


def _at_size_of(mask: NDArray[np.uint8], target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask at the target's size, by the nearest pixel."""
    if mask.shape == target.shape:
        return mask
    height, width = target.shape
    resized = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.uint8, copy=False)
