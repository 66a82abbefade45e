"""Random crops and mirror images, on whole uint8 batches."""

from __future__ import annotations

import torch
from torch import Tensor


def random_crop_and_flip(images: Tensor, *, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each picture by up to `padding` pixels (black comes in) and mirror half of them.

    Args:
        images: uint8 [N, H, W, 3].
        padding: In pixels.
        generator: Source of randomness, on the CPU.

    Returns:
        uint8 [N, H, W, 3].
    """
    n, height, width, _ = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    shift = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    flip = torch.randint(0, 2, (n, 1), generator=generator, dtype=torch.bool)
    rows = shift[0] + torch.arange(height)
    columns = torch.arange(width).expand(n, width)
    columns = shift[1] + torch.where(flip, columns.flip(1), columns)
    picture = torch.arange(n)[:, None, None].to(images.device)
    return padded[
        picture, rows[:, :, None].to(images.device), columns[:, None, :].to(images.device)
    ]
