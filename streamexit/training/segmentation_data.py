"""Picture sets with one label per pixel: CamVid and Cityscapes.

H, W: rows and columns that were asked for.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from streamexit.errors import DataError
from streamexit.prediction import VOID
from streamexit.preprocessing import InputConverter, Preprocessing
from streamexit.training.decoded import cache_file, map_decoded
from streamexit.training.labelled import LabelledImages, fixed_order

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

CITYSCAPES_SIZE = (1024, 512)
"""(width, height) that Cityscapes' pictures are brought to."""

PICTURE, LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def load_camvid(root: Path, part: Literal["train", "calibration", "test"]) -> LabelledImages:
    """CamVid (Brostow et al., 2009) in the version of the SegNet tutorial, 480 x 360 pixels.

    Its validation part is the calibration part. Pictures are frames, in time order, and parts are not
    from drives of their own: all 101 validation frames are of the sequence 0016E5, as are 204 of the
    367 training frames. What is fitted on them has seen roads that the network was taught on.

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
    images, labels, names = [], [], []
    try:
        with zipfile.ZipFile(archive) as z:
            members = set(z.namelist())
            for name in sorted(n for n in members if n.startswith(f"{folder}/") and n[-1] != "/"):
                annotated = f"{folder}annot/{Path(name).stem}.png"
                if annotated not in members:
                    raise DataError(f"{archive}: {name} has no labels; expected {annotated}")
                names.append(name)
                images.append(_decode(z.read(name), cv2.IMREAD_COLOR_RGB))
                labels.append(_decode(z.read(annotated), cv2.IMREAD_UNCHANGED))
        everything = LabelledImages(
            np.stack(images), np.stack(labels), CAMVID_CLASSES, tuple(names)
        )
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


def load_cityscapes(
    root: Path, test: bool, *, size: tuple[int, int] = CITYSCAPES_SIZE
) -> LabelledImages:
    """Cityscapes (Cordts et al., CVPR 2016), its 19 evaluated classes, in its own layout.

    `val` is the test part, because the true labels of Cityscapes' own test part are not published.
    Pictures are scaled as the node does it with `fit: stretch`; a pixel's label is the nearest one's.
    The first call decodes them all into a file under `root/.streamexit-cache/` (6 GB for training);
    all calls map it into memory.

    Args:
        root: Folder that holds `leftImg8bit/{train,val}/<city>/*_leftImg8bit.png` and
            `gtFine/{train,val}/<city>/*_gtFine_labelIds.png`.
        test: Whether `val` is meant.
        size: (width, height) that pictures are brought to, in pixels; half of the original.

    Raises:
        DataError: A missing folder, no pictures, a picture without labels, a file that is not what it
            should be, or no room for the decoded ones.
    """
    part = "val" if test else "train"
    pairs = _cityscapes_pairs(root, part)
    pairs = [pairs[i] for i in fixed_order(len(pairs))]
    width, height = size
    cache = cache_file(root, part, f"{width}x{height}", [picture.name for picture, _ in pairs])
    decoded = (_read_pair(picture, labels, size) for picture, labels in pairs)
    together = map_decoded(cache, (len(pairs), height, width, 4), decoded)
    names = tuple(picture.name for picture, _ in pairs)
    classes = tuple(TRAIN_CLASSES.values())
    return LabelledImages(together[..., :3], together[..., 3], classes, names)


def _cityscapes_pairs(root: Path, part: str) -> list[tuple[Path, Path]]:
    """(picture, labels) files, sorted."""
    pictures, labels = root / "leftImg8bit" / part, root / "gtFine" / part
    for folder, file in ((pictures, PICTURE), (labels, LABELS)):
        if not folder.is_dir():
            raise DataError(
                f"data.root: {folder} is missing; Cityscapes is expected as {folder}/<city>/*{file}; "
                "name its folder with --data"
            )
    pairs = []
    for picture in sorted(pictures.glob(f"*/*{PICTURE}")):
        label = labels / picture.parent.name / (picture.name.removesuffix(PICTURE) + LABELS)
        if not label.is_file():
            raise DataError(f"data.root: {picture} has no labels; expected {label}")
        pairs.append((picture, label))
    if not pairs:
        raise DataError(f"data.root: no pictures; expected {pictures}/<city>/*{PICTURE}")
    return pairs


def _read_pair(picture: Path, labels: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """[H, W, 4]: red, green, blue, train id (`VOID` where none)."""
    rgb = _read_image(picture, cv2.IMREAD_COLOR_RGB)
    label_ids = _read_image(labels, cv2.IMREAD_UNCHANGED)
    if label_ids.shape != rgb.shape[:2]:
        raise DataError(
            f"{labels}: is {label_ids.shape}, but its picture is {rgb.shape[:2]}; "
            "expected one byte per pixel"
        )
    convert = InputConverter(Preprocessing(*size, (0, 0, 0), (1, 1, 1), fit="stretch"))
    train_ids = _to_train_ids()[label_ids]
    nearest = cv2.resize(train_ids, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.dstack([convert.from_array(rgb), nearest.astype(np.uint8, copy=False)])


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
