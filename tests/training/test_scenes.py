from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamexit.errors import DataError
from streamexit.prediction import VOID
from streamexit.training.augment import change_scene
from streamexit.training.datasets import load_part
from streamexit.training.losses import class_weights
from streamexit.training.segmentation_data import CAMVID_CLASSES


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encoded."""
    return cv2.imencode(".png", picture)[1].tobytes()


def write_camvid(root: Path, **changes: bytes | None) -> Path:
    """A CamVid of two small pictures a part; `changes` replace members, None leaves one out."""
    members: dict[str, bytes | None] = {}
    for part, value in (("train", 40), ("val", 80), ("test", 120)):
        for i in range(2):
            picture = np.full((6, 8, 3), value + i, np.uint8)
            labels = np.full((6, 8), i, np.uint8)
            labels[0] = 11
            members[f"{part}/{i}.png"] = png(picture)
            members[f"{part}annot/{i}.png"] = png(labels)
    members.update(
        {name.replace("__", "/").replace("_png", ".png"): v for name, v in changes.items()}
    )
    with zipfile.ZipFile(root / "camvid.zip", "w") as z:
        for name, content in members.items():
            if content is not None:
                z.writestr(name, content)
    return root


def test_camvid_comes_in_its_three_parts(tmp_path: Path) -> None:
    """Its validation part calibrates; label 11 becomes void; pictures and labels stay together."""
    write_camvid(tmp_path)
    for part, value in (("train", 40), ("calibration", 80), ("test", 120)):
        data = load_part("camvid", tmp_path, part, calibration_size=None)  # type: ignore[arg-type]
        assert data.classes == CAMVID_CLASSES
        assert data.images.shape == (2, 6, 8, 3)
        assert data.images[:, 0, 0, 0].tolist() == [value, value + 1]
        assert (data.labels[:, 0] == VOID).all()
        assert data.labels[:, 1, 0].tolist() == [0, 1]


def test_real_camvid(data: Path) -> None:
    """The parts have the published sizes and no label beyond the eleven."""
    test = load_part("camvid", data, "test", calibration_size=None)
    assert test.images.shape == (233, 360, 480, 3)
    assert set(np.unique(test.labels)) == {*range(11), VOID}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"testannot__1_png": None}, "test/1.png has no labels; expected testannot/1.png"),
        ({"test__1_png": b"no picture"}, "not CamVid as expected"),
        ({"testannot__1_png": png(np.full((6, 8), 12, np.uint8))}, "labels do not fit"),
        ({"testannot__1_png": png(np.zeros((6, 9), np.uint8))}, "not CamVid as expected"),
    ],
)
def test_damaged_camvid_is_refused(
    tmp_path: Path, changes: dict[str, bytes | None], expected: str
) -> None:
    """A missing or foreign member is named."""
    write_camvid(tmp_path, **changes)
    with pytest.raises(DataError, match=expected):
        load_part("camvid", tmp_path, "test", calibration_size=None)


def test_camvid_is_not_cut(tmp_path: Path) -> None:
    """A size for the calibration part makes no sense where there is one; a missing file is named."""
    with pytest.raises(DataError, match=r"calibration_size: 5 .* leave the field out"):
        load_part("camvid", tmp_path, "train", calibration_size=5)
    with pytest.raises(DataError, match=r"holds no camvid\.zip"):
        load_part("camvid", tmp_path, "train", calibration_size=None)


def scene(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose red says which class each pixel has."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 4, (count, 6, 8), generator=generator, dtype=torch.uint8)
    labels = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = torch.zeros(*labels.shape, 3, dtype=torch.uint8)
    images[..., 0] = 60 * labels + 20
    return images, labels


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (0.6, 1.8)])
def test_labels_move_with_their_pixels(scale: tuple[float, float]) -> None:
    """However a scene is scaled, cut and mirrored, each pixel keeps its class, and new ones have none."""
    images, labels = scene()
    generator = torch.Generator().manual_seed(0)
    changed, moved = change_scene(images, labels, generator, scale=scale, colour=0.0)
    assert changed.shape == images.shape
    assert moved.shape == labels.shape
    assert changed.dtype == moved.dtype == torch.uint8
    known = moved != VOID
    assert known.all() == (min(scale) >= 1)
    said = ((changed[..., 0].float() - 20) / 60).round().to(torch.uint8)
    assert (said[known] == moved[known]).float().mean() > 0.75  # pixels at edges are mixed
    assert (changed[~known] == 0).all()


def test_changes_are_drawn_from_the_generator() -> None:
    """The same generator gives the same scenes; colours change when asked to; half are mirrored."""
    images, labels = scene(40)
    once = change_scene(
        images, labels, torch.Generator().manual_seed(5), scale=(0.8, 1.5), colour=0.3
    )
    again = change_scene(
        images, labels, torch.Generator().manual_seed(5), scale=(0.8, 1.5), colour=0.3
    )
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    same_size = change_scene(
        images, labels, torch.Generator().manual_seed(5), scale=(1.0, 1.0), colour=0.0
    )
    mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(same_size[1], labels, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(same_size[1], labels, strict=True)]
    assert sum(mirrored) + sum(kept) == 40
    assert 10 < sum(mirrored) < 30
    coloured = change_scene(
        images, labels, torch.Generator().manual_seed(5), scale=(1.0, 1.0), colour=0.3
    )
    assert torch.equal(coloured[1], same_size[1])
    assert not torch.equal(coloured[0], same_size[0])


def test_rare_classes_weigh_more() -> None:
    """1 / ln(1.02 + share), scaled to a mean of 1 over the labels; void is not counted."""
    labels = np.array([0] * 90 + [1] * 10 + [VOID] * 50, np.uint8)
    weights = class_weights(labels, 3)
    raw = 1 / np.log(1.02 + np.array([0.9, 0.1, 0.0]))
    assert weights.numpy() == pytest.approx(raw / (0.9 * raw[0] + 0.1 * raw[1]), rel=1e-5)
    assert weights[2] > weights[1] > weights[0]
