from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from streamexit.training.augment import crop_and_flip

PADDING = 2


def pictures(count: int) -> Tensor:
    """Random pictures without black."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(1, 256, (count, 6, 5, 3), generator=generator, dtype=torch.uint8)


def augment(images: Tensor, *, padding: int, seed: int) -> Tensor:
    """With a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(images))
    changed, kept = crop_and_flip(images, labels, generator, padding=padding)
    assert torch.equal(kept, labels)
    return changed


def test_every_picture_is_the_source_or_its_mirror_shifted() -> None:
    """Each result is one shift of the black-framed picture or mirror; all shifts and both occur."""
    images = pictures(400)
    result = augment(images, padding=PADDING, seed=0)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    seen = set()
    for source, picture in zip(images, result, strict=True):
        found = []
        for mirrored in (False, True):
            side = source.flip(1) if mirrored else source
            framed = pad(side, (0, 0, PADDING, PADDING, PADDING, PADDING))
            found += [
                (mirrored, y, x)
                for y in range(2 * PADDING + 1)
                for x in range(2 * PADDING + 1)
                if torch.equal(framed[y : y + 6, x : x + 5], picture)
            ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 2 * (2 * PADDING + 1) ** 2


def test_same_generator_gives_the_same_pictures() -> None:
    """Randomness comes from the generator alone: same seed same result, other seed another."""
    images = pictures(30)
    torch.manual_seed(1)
    one = augment(images, padding=PADDING, seed=5)
    torch.manual_seed(2)
    assert torch.equal(one, augment(images, padding=PADDING, seed=5))
    assert not torch.equal(one, augment(images, padding=PADDING, seed=6))


def test_without_padding_pictures_are_only_mirrored() -> None:
    """Padding 0 leaves each picture as it is or mirrors it, about half of them, the input intact."""
    images = pictures(200)
    before = images.clone()
    result = augment(images, padding=0, seed=0)
    kept = sum(torch.equal(a, b) for a, b in zip(images, result, strict=True))
    mirrored = sum(torch.equal(a.flip(1), b) for a, b in zip(images, result, strict=True))
    assert kept + mirrored == 200
    assert 70 < mirrored < 130
    assert torch.equal(images, before)
