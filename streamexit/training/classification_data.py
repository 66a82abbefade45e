"""Picture sets with one label per picture: CIFAR-10, CIFAR-100, ImageNet."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from streamexit.errors import DataError
from streamexit.preprocessing import Image, InputConverter, Preprocessing
from streamexit.training.decoded import cache_file, map_decoded
from streamexit.training.labelled import LabelledImages, fixed_order

SHEET = 25, 40
"""Rows and columns of pictures on a sprite sheet."""

IMAGENET_SIZE = 224
"""Rows and columns that ImageNet's pictures are brought to."""


def load_cifar10(root: Path, test: bool) -> LabelledImages:
    """CIFAR-10 from `cifar10_{train,test}.zip` (sprite sheets) or torchvision's own folder."""
    archive = root / f"cifar10_{'test' if test else 'train'}.zip"
    return _load_cifar(archive, "CIFAR10", "cifar-10-batches-py", test=test)


def load_cifar100(root: Path, test: bool) -> LabelledImages:
    """CIFAR-100, its 100 fine classes, from sprite sheets or torchvision's own folder.

    The sheets of `cifar100_{train,test}_lossy.zip` are JPEGs: what is reached on them is not quite
    comparable with what others reach on the original pictures. Their order is another than that of
    torchvision's folder, so one's calibration part holds training pictures of the other.
    """
    archive = root / f"cifar100_{'test' if test else 'train'}_lossy.zip"
    return _load_cifar(archive, "CIFAR100", "cifar-100-python", test=test)


def _load_cifar(archive: Path, name: str, folder: str, *, test: bool) -> LabelledImages:
    """From `archive`, or by torchvision's class `name` from its `folder` beside it."""
    root = archive.parent
    if archive.is_file():
        return read_sprite_archive(archive)
    if not (root / folder).is_dir():
        raise DataError(
            f"data.root: {root} holds neither {archive.name} nor {folder}/; "
            "name the folder that does with --data"
        )
    from torchvision import datasets

    try:
        data = getattr(datasets, name)(str(root), train=not test, download=False)
    except RuntimeError as error:
        raise DataError(f"data.root: {root / folder}: {error}") from error
    return LabelledImages(data.data, np.asarray(data.targets, np.int64), tuple(data.classes))


def load_imagenet(root: Path, test: bool, *, size: int = IMAGENET_SIZE) -> LabelledImages:
    """ImageNet from torchvision's layout, `{train,val}/<wnid>/*.JPEG`; `val` is the test part.

    Pictures are brought to `size` x `size` as the node does it with `fit: crop`: the shorter side
    is scaled to `size`, the longer one cut, centred. Training does not see random crops of the
    large originals, as published ImageNet recipes do.

    They do not fit into memory: at 224 pixels one takes 150 KB, the training set 193 GB. So the
    first call decodes them all, once (hours for the training set), into a file under
    `root/.streamexit-cache/`, which needs that much disk; all calls map it into memory, and only
    what is looked at is read. Training on a GPU, however, copies its whole part there.

    Args:
        root: Folder with both parts.
        test: Whether `val` is meant.
        size: Rows and columns of the pictures.

    Raises:
        DataError: Another layout, a file that is no picture, or no room for the decoded ones.
    """
    classes = _class_folders(root)
    part = root / ("val" if test else "train")
    listing = [
        (f"{name}/{file.name}", label)
        for label, name in enumerate(classes)
        for file in sorted((part / name).iterdir())
        if file.suffix.lower() in (".jpeg", ".jpg", ".png")
    ]
    if not listing:
        raise DataError(f"data.root: {part} holds no pictures; expected {part}/<wnid>/*.JPEG")
    listing = [listing[i] for i in fixed_order(len(listing))]
    cache = cache_file(root, part.name, str(size), [name for name, _ in listing])
    convert = InputConverter(Preprocessing(size, size, (0, 0, 0), (1, 1, 1), fit="crop"))
    decoded = (decode_picture(part / name, convert) for name, _ in listing)
    images = map_decoded(cache, (len(listing), size, size, 3), decoded)
    names, labels = zip(*listing, strict=True)
    return LabelledImages(images, np.asarray(labels, np.int64), classes, names)


def _class_folders(root: Path) -> tuple[str, ...]:
    found: dict[str, tuple[str, ...]] = {}
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise DataError(
                f"data.root: {root} has no folder {part}/; ImageNet is expected as "
                "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG; name its folder with --data"
            )
        found[part] = tuple(sorted(p.name for p in (root / part).iterdir() if p.is_dir()))
    if different := set(found["train"]) ^ set(found["val"]):
        raise DataError(
            f"data.root: {root}: train/ and val/ must have the same classes, but "
            f"{min(different)} is only in one of them"
        )
    return found["train"]


def decode_picture(file: Path, convert: InputConverter) -> Image:
    """A picture file as the network's input.

    Raises:
        DataError: It cannot be read, or is no picture.
    """
    try:
        encoded = np.frombuffer(file.read_bytes(), np.uint8)
        rgb = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB) if encoded.size else None
        if rgb is None:
            raise DataError(f"{file} is not a picture")
        return convert.from_array(rgb.astype(np.uint8, copy=False))
    except (OSError, ValueError, MemoryError, cv2.error, FFmpegError) as error:
        raise DataError(f"{file}: cannot be read as a picture: {error}") from error


def read_sprite_archive(archive: Path) -> LabelledImages:
    """Read a zip of sprite sheets (25 x 40 pictures each), labels.npy, classes.txt."""
    try:
        with zipfile.ZipFile(archive) as z:
            sheets = sorted(n for n in z.namelist() if n.endswith((".webp", ".jpg", ".png")))
            images = [_cut_sheet(z.read(name), *SHEET) for name in sheets]
            labels = np.load(io.BytesIO(z.read("labels.npy"))).astype(np.int64)
            classes = tuple(z.read("classes.txt").decode().split())
        everything = LabelledImages(np.concatenate(images), labels, classes)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, ValueError, cv2.error) as error:
        raise DataError(f"{archive} is not an archive of sprite sheets: {error}") from error
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"{archive}: labels go beyond the {len(classes)} classes of classes.txt")
    return everything


def _cut_sheet(encoded: bytes, rows: int, columns: int) -> NDArray[np.uint8]:
    sheet = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if sheet is None:
        raise OSError("a sheet is not a picture")
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    cells = sheet.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(cells.reshape(-1, height, width, 3), dtype=np.uint8)
