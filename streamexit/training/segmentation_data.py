"""Picture sets with one label per pixel: CamVid and Cityscapes.

H, W: rows and columns that were asked for.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from streamexit.errors import DataError
from streamexit.prediction import VOID
from streamexit.preprocessing import Image, InputConverter, Preprocessing
from streamexit.training.labelled import LabelledImages

CityscapesPart = Literal["train", "val", "test"]

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
"""The eleven classes of the SegNet version of CamVid; label 11 says that a pixel has none."""

TRAIN_CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Of Cityscapes' 34 label ids (0 to 33), the 19 that are learned, in the order of their train ids."""

PICTURE, LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def load_camvid(root: Path, part: Literal["train", "calibration", "test"]) -> LabelledImages:
    """CamVid (Brostow et al., 2009) in the version of the SegNet tutorial, 480 x 360 pixels.

    Its validation part is the calibration part. Pictures of one part are from the same drives.

    Args:
        root: Folder that holds `camvid.zip`, with `{train,val,test}/NAME.{webp,png}` and the labels
            as `{train,val,test}annot/NAME.png`.
        part: Which part.

    Raises:
        DataError: A missing or damaged archive, or a picture without labels.
    """
    archive = root / "camvid.zip"
    if not archive.is_file():
        raise DataError(f"data.root: {root} holds no {archive.name}; name its folder with --data")
    folder = "val" if part == "calibration" else part
    images, labels = [], []
    try:
        with zipfile.ZipFile(archive) as z:
            members = set(z.namelist())
            for name in sorted(n for n in members if n.startswith(f"{folder}/") and n[-1] != "/"):
                annotated = f"{folder}annot/{Path(name).stem}.png"
                if annotated not in members:
                    raise DataError(f"{archive}: {name} has no labels; expected {annotated}")
                images.append(_decode(z.read(name), cv2.IMREAD_COLOR_RGB))
                labels.append(_decode(z.read(annotated), cv2.IMREAD_UNCHANGED))
        everything = LabelledImages(np.stack(images), np.stack(labels), CAMVID_CLASSES)
    except (zipfile.BadZipFile, OSError, ValueError, cv2.error) as error:
        raise DataError(f"{archive} is not CamVid as expected: {error}") from error
    everything.labels[everything.labels == len(CAMVID_CLASSES)] = VOID
    if everything.labels.shape != everything.images.shape[:3] or (
        everything.labels[everything.labels != VOID].max(initial=0) >= len(CAMVID_CLASSES)
    ):
        raise DataError(f"{archive}: labels do not fit the pictures or the 11 classes")
    return everything


def _decode(encoded: bytes, flags: int) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if picture is None or picture.dtype != np.uint8:
        raise ValueError("a member is not a picture of bytes")
    return picture.astype(np.uint8, copy=False)


@dataclass(frozen=True, slots=True)
class SegmentationPairs:
    """Pictures on disk, each with its labels.

    Attributes:
        files: (picture, labels) per row, sorted by name; labels hold Cityscapes' label ids.
        classes: Names, in the order of the train ids.
    """

    files: tuple[tuple[Path, Path], ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int, size: tuple[int, int]) -> tuple[Image, NDArray[np.uint8]]:
        """Decode pair i and bring it to one size.

        The picture is scaled as the node does it with `fit: stretch`; each pixel's label is the
        nearest one's.

        Args:
            i: Row of `files`.
            size: (width, height), in pixels.

        Returns:
            Picture uint8 [H, W, 3], RGB, and train ids uint8 [H, W], `VOID` where none.

        Raises:
            DataError: A file that is not what it should be, or two that do not fit together.
        """
        picture_file, label_file = self.files[i]
        rgb = _read_image(picture_file, cv2.IMREAD_COLOR_RGB)
        label_ids = _read_image(label_file, cv2.IMREAD_UNCHANGED)
        if label_ids.shape != rgb.shape[:2]:
            raise DataError(
                f"{label_file}: is {label_ids.shape}, but its picture is {rgb.shape[:2]}; "
                "expected one byte per pixel"
            )
        convert = InputConverter(Preprocessing(*size, (0, 0, 0), (1, 1, 1), fit="stretch"))
        train_ids = _to_train_ids()[label_ids]
        nearest = cv2.resize(train_ids, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return convert.from_array(rgb), nearest.astype(np.uint8, copy=False)


def load_cityscapes(root: Path, part: CityscapesPart) -> SegmentationPairs:
    """Find one part of Cityscapes, in its own layout; no picture is read yet.

    `test` has label files, too, but they say nothing: the true ones are not published.

    Args:
        root: Folder that holds `leftImg8bit/{train,val,test}/<city>/*_leftImg8bit.png` and
            `gtFine/{train,val,test}/<city>/*_gtFine_labelIds.png`.
        part: Which part.

    Raises:
        DataError: A missing folder, no pictures, or a picture without labels.
    """
    pictures, labels = root / "leftImg8bit" / part, root / "gtFine" / part
    for folder, file in ((pictures, PICTURE), (labels, LABELS)):
        if not folder.is_dir():
            raise DataError(
                f"data.root: {folder} is missing; Cityscapes is expected as {folder}/<city>/*{file}"
            )
    files: list[tuple[Path, Path]] = []
    for picture in sorted(pictures.glob(f"*/*{PICTURE}")):
        label = labels / picture.parent.name / (picture.name.removesuffix(PICTURE) + LABELS)
        if not label.is_file():
            raise DataError(f"data.root: {picture} has no labels; expected {label}")
        files.append((picture, label))
    if not files:
        raise DataError(f"data.root: no pictures; expected {pictures}/<city>/*{PICTURE}")
    return SegmentationPairs(tuple(files), tuple(TRAIN_CLASSES.values()))


def _to_train_ids() -> NDArray[np.uint8]:
    """Train id of each label id [256]."""
    table = np.full(256, VOID, np.uint8)
    table[list(TRAIN_CLASSES)] = np.arange(len(TRAIN_CLASSES), dtype=np.uint8)
    return table


def _read_image(file: Path, flags: int) -> NDArray[np.uint8]:
    try:
        encoded = np.frombuffer(file.read_bytes(), np.uint8)
        image = cv2.imdecode(encoded, flags) if encoded.size else None
    except (OSError, cv2.error) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if image is None or image.dtype != np.uint8:
        raise DataError(f"{file} is not a picture of bytes")
    return image.astype(np.uint8, copy=False)
