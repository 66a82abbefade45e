"""Pictures of one's own: a folder per class."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from streamexit.cache import cache_folder
from streamexit.errors import DataError
from streamexit.preprocessing import InputConverter, Preprocessing
from streamexit.training.classification_data import decode_picture
from streamexit.training.decoded import cache_file, map_decoded
from streamexit.training.labelled import LabelledImages

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TEST_SHARE = 0.2
"""Of the pictures of a folder that is not divided already."""


def load_folder(root: Path, test: bool, preprocessing: Preprocessing) -> LabelledImages:
    """`{train,test}/<class>/*.jpg`, or `<class>/*.jpg`, of which about a fifth is the test part.

    A picture's place depends on its own name alone, so that it stays in its part when others come and
    go; calibration is cut from the front of the training part (see `load_part`). Pictures are brought to the network's
    input size once, into a file in the cache folder, and mapped into memory from there.

    Args:
        root: Folder with the classes, or with `train` and `test`.
        test: Whether the test part is meant.
        preprocessing: Of the network.

    Raises:
        DataError: Another layout, a file that is no picture, or no room for the decoded ones.
    """
    if not root.is_dir():
        raise DataError(f"data.root: {root} is no folder; name another one with --data")
    divided = (root / "train").is_dir() and (root / "test").is_dir()
    place = root / ("test" if test else "train") if divided else root
    classes = _classes(root / "train" if divided else root)
    if divided and (different := {*classes} ^ {*_classes(root / "test")}):
        raise DataError(
            f"data.root: {root}: train/ and test/ differ in the class {min(different)!r}"
        )
    listing = [(f"{c}/{file.name}", k) for k, c in enumerate(classes) for file in _files(place / c)]
    listing.sort(key=lambda one: _place(one[0]))
    if not divided:
        listing = [one for one in listing if (_place(one[0]) < TEST_SHARE) == test]
    names, labels = [name for name, _ in listing], [k for _, k in listing]
    if missing := {*range(len(classes))} - {*labels}:
        part = "test" if test else "training"
        raise DataError(f"data.root: {place}: no {part} picture of class {classes[min(missing)]!r}")
    p = preprocessing
    seen = [f"{name} {(place / name).stat().st_mtime_ns}" for name in names]
    own = (
        cache_folder() / "pictures" / hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:16]
    )
    cache = cache_file(own, "test" if test else "train", f"{p.width}x{p.height}-{p.fit}", seen)
    convert = InputConverter(preprocessing)
    decoded = (decode_picture(place / name, convert) for name in names)
    images = map_decoded(cache, (len(names), p.height, p.width, 3), decoded)
    return LabelledImages(images, np.asarray(labels, np.int64), classes, tuple(names))


def _place(name: str) -> float:
    """Between 0 and 1, as if drawn, and always the same for a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _classes(folder: Path) -> tuple[str, ...]:
    found = tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    if len(found) < 2:
        raise DataError(
            f"data.root: {folder} holds {len(found)} folders; expected one per class, with pictures in it"
        )
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
