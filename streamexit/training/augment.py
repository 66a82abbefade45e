"""Random changes of training pictures, on whole uint8 batches.

N: pictures, H, W: rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from streamexit.prediction import VOID
from streamexit.training.recipe import CropAndFlip, Scenes

Augmentation = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(pictures uint8 [N, H, W, 3], labels [N, ...], generator on the CPU) -> both, changed."""


def build_augmentation(spec: CropAndFlip | Scenes) -> Augmentation:
    """What a recipe asks for."""
    if isinstance(spec, Scenes):
        return partial(change_scene, scale=spec.scale, colour=spec.colour)
    return partial(crop_and_flip, padding=spec.padding)


def crop_and_flip(
    images: Tensor, labels: Tensor, generator: torch.Generator, *, padding: int
) -> tuple[Tensor, Tensor]:
    """Shift each picture by up to `padding` pixels (black comes in) and mirror half of them.

    For labels that hold for the whole picture; they stay as they are.
    """
    n, height, width, _ = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    shift = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    flip = torch.randint(0, 2, (n, 1), generator=generator, dtype=torch.bool)
    rows = shift[0] + torch.arange(height)
    columns = torch.arange(width).expand(n, width)
    columns = shift[1] + torch.where(flip, columns.flip(1), columns)
    picture = torch.arange(n)[:, None, None].to(images.device)
    changed = padded[
        picture, rows[:, :, None].to(images.device), columns[:, None, :].to(images.device)
    ]
    return changed, labels


def change_scene(
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float],
    colour: float,
) -> tuple[Tensor, Tensor]:
    """Scale each scene, cut or pad it to its old size, mirror half of them, shift the colours.

    Args:
        images: uint8 [N, H, W, 3].
        labels: uint8 [N, H, W], one class per pixel; what comes in at the sides has none (`VOID`).
        generator: Source of randomness, on the CPU.
        scale: Smallest and largest factor.
        colour: Largest change of brightness, contrast and saturation.
    """
    pairs = [
        _change_one(picture.permute(2, 0, 1), map_[None], generator, scale=scale, colour=colour)
        for picture, map_ in zip(images, labels, strict=True)
    ]
    pictures = torch.stack([picture for picture, _ in pairs]).permute(0, 2, 3, 1)
    return pictures, torch.cat([map_ for _, map_ in pairs])


def _change_one(
    picture: Tensor,
    map_: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float],
    colour: float,
) -> tuple[Tensor, Tensor]:
    """The same for one picture [3, H, W] and its map [1, H, W]."""
    height, width = picture.shape[1:]
    draw = torch.rand(7, generator=generator).tolist()
    low, high = math.log(scale[0]), math.log(scale[1])
    factor = math.exp(low + (high - low) * draw[0])
    size = [round(height * factor), round(width * factor)]
    picture = vision.resize(picture, size, antialias=True)
    map_ = vision.resize(map_, size, interpolation=vision.InterpolationMode.NEAREST_EXACT)
    missing = [max(0, width - size[1]), max(0, height - size[0])]
    left, top = round(missing[0] * draw[1]), round(missing[1] * draw[2])
    sides = [left, top, missing[0] - left, missing[1] - top]
    picture, map_ = vision.pad(picture, sides), vision.pad(map_, sides, fill=VOID)
    top = round((picture.shape[1] - height) * draw[2])
    left = round((picture.shape[2] - width) * draw[1])
    picture = vision.crop(picture, top, left, height, width)
    map_ = vision.crop(map_, top, left, height, width)
    if draw[3] < 0.5:
        picture, map_ = vision.horizontal_flip(picture), vision.horizontal_flip(map_)
    for change, number in zip(
        (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation),
        draw[4:],
        strict=True,
    ):
        picture = change(picture, 1 + colour * (2 * number - 1))
    return picture, map_
