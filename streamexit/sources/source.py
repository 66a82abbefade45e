"""The seam between where pictures come from and everything behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from streamexit.frame import Decoder
from streamexit.metrics import DropReason
from streamexit.preprocessing import Image

DropReport = Callable[[DropReason], None]
"""Called by a source for each frame that it could not yield, in stream order."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a source yields.

    Attributes:
        image: uint8 [H, W, 3], RGB, at the network's input size; on the GPU if that decoded it.
        pts_seconds: On the source's time line, strictly rising within one opening.
        label: As in `FrameInfo`.
        size: As in `FrameInfo`.
        decoder: As in `FrameInfo`.
    """

    image: Image | Tensor
    pts_seconds: float
    label: int | NDArray[np.uint8] | None = None
    size: tuple[int, int] | None = None
    decoder: Decoder = "software"


class Source(Protocol):
    """Something that yields pictures.

    Attributes:
        live: Whether it goes on without us: it then cannot be made to wait.
    """

    live: bool

    def pictures(self, report: DropReport) -> Iterator[Picture]:
        """Open anew and yield pictures until the end.

        Raises:
            SourceError: It cannot be opened, or breaks.
        """
        ...
