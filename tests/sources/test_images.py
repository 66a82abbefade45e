"""Folders and zips of labelled pictures."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from streamexit.errors import SourceError
from streamexit.metrics import DropReason
from streamexit.preprocessing import Image
from streamexit.sources.images import ImageSource
from streamexit.sources.source import Picture
from streamexit.testing import TOY_LABELS, TOY_PREPROCESSING


def chunk(kind: bytes, content: bytes) -> bytes:
    """One part of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
BAD_PICTURES = {
    "empty": b"",
    "text": b"this is no picture",
    "header_only": PNG_MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)),
    "claims_10_gigapixels": PNG_MAGIC
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 100000, 100000, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(100)))
    + chunk(b"IEND", b""),
}


def flat(rgb: tuple[int, int, int], size: int = 8) -> Image:
    """A picture of one colour."""
    return np.full((size, size, 3), rgb, np.uint8)


def encoded(
    picture: np.ndarray[tuple[int, ...], np.dtype[np.integer]], suffix: str = ".png"
) -> bytes:
    """A picture file's content; RGB(A) in, as cv2 wants it out."""
    swapped = picture
    if picture.ndim == 3:
        swapped = picture[..., [2, 1, 0, 3][: picture.shape[2]]]
    return cv2.imencode(suffix, swapped)[1].tobytes()


def store(where: Path, files: dict[str, bytes]) -> Path:
    """Write files into the folder or zip `where`."""
    if where.suffix == ".zip":
        with zipfile.ZipFile(where, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return where
    where.mkdir()
    for name, content in files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(content)
    return where


def read(path: Path) -> tuple[list[Picture], list[DropReason]]:
    """All pictures of a folder or zip, and why others are missing."""
    drops: list[DropReason] = []
    source = ImageSource(path, TOY_PREPROCESSING, labels=TOY_LABELS, rate=10.0)
    return list(source.pictures(drops.append)), drops


@pytest.mark.parametrize("where", ["pictures", "pictures.zip"])
def test_pictures_come_in_file_name_order_with_labels(tmp_path: Path, where: str) -> None:
    """Classes are mixed by file name, labels come from folder names, pixels arrive unchanged."""
    shades = [(10 * i, 200, 250 - 10 * i) for i in range(4)]
    names = ["dog/0.png", "ant/1.png", "train/bee/2.PNG", "ant/3.png"]
    files = {name: encoded(flat(rgb)) for name, rgb in zip(names, shades, strict=True)}
    files["readme.txt"] = b"not meant to be a picture"
    path = store(tmp_path / where, dict(sorted(files.items())))
    pictures, drops = read(path)
    assert drops == []
    assert [p.label for p in pictures] == [3, 0, 1, 0]
    assert [p.pts_seconds for p in pictures] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    np.testing.assert_array_equal([p.image for p in pictures], [flat(s) for s in shades])


@pytest.mark.parametrize("where", ["pictures", "pictures.zip"])
def test_pictures_outside_a_class_folder_have_no_label(tmp_path: Path, where: str) -> None:
    """Pictures directly in the folder are read too, without a label."""
    picture = encoded(flat((1, 2, 3)))
    pictures, _ = read(store(tmp_path / where, {"a.png": picture, "cat/b.png": picture}))
    assert [p.label for p in pictures] == [None, 2]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".bmp"])
def test_every_documented_format_is_read(tmp_path: Path, suffix: str) -> None:
    """Each listed kind of file gives its colours, resized to the network's size."""
    path = store(tmp_path / "p", {f"cat/a{suffix}": encoded(flat((200, 60, 20), 32), suffix)})
    [picture], drops = read(path)
    assert drops == []
    assert picture.image.shape == (8, 8, 3)
    np.testing.assert_allclose(picture.image, flat((200, 60, 20)), atol=8)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (np.full((8, 8), 90, np.uint8), (90, 90, 90)),
        (np.full((8, 8, 4), (10, 20, 30, 255), np.uint8), (10, 20, 30)),
        (np.full((8, 8, 3), 0x8080, np.uint16), (0x80, 0x80, 0x80)),
    ],
    ids=["grey", "transparency", "16-bit"],
)
def test_unusual_pixels_become_plain_rgb(
    tmp_path: Path,
    stored: np.ndarray[tuple[int, ...], np.dtype[np.integer]],
    shown: tuple[int, int, int],
) -> None:
    """Grey, transparent and deep pictures come as 8-bit RGB like all others."""
    [picture], _ = read(store(tmp_path / "p", {"cat/a.png": encoded(stored)}))
    np.testing.assert_allclose(picture.image, flat(shown), atol=1)


@pytest.mark.parametrize("where", ["pictures", "pictures.zip"])
@pytest.mark.parametrize("bad", BAD_PICTURES)
def test_a_file_that_is_no_picture_costs_one_frame(tmp_path: Path, where: str, bad: str) -> None:
    """An unreadable file is counted once, and the pictures around it come all the same."""
    good = encoded(flat((1, 2, 3)))
    files = {"cat/0.png": good, "cat/1.png": BAD_PICTURES[bad], "dog/2.png": good}
    pictures, drops = read(store(tmp_path / where, files))
    assert [p.label for p in pictures] == [2, 3]
    assert drops == ["unreadable_image"]


def test_a_picture_that_vanishes_costs_one_frame(tmp_path: Path) -> None:
    """It was there when the folder was read, and the pictures around it come all the same."""
    good = encoded(flat((1, 2, 3)))
    path = store(tmp_path / "p", {"cat/0.png": good, "cat/1.png": good, "dog/2.png": good})
    drops: list[DropReason] = []
    source = ImageSource(path, TOY_PREPROCESSING, labels=TOY_LABELS, rate=10.0)
    pictures = source.pictures(drops.append)
    first = next(pictures)
    (path / "cat" / "1.png").unlink()
    assert [first.label, *(p.label for p in pictures)] == [2, 3]
    assert drops == ["unreadable_image"]


def test_a_damaged_member_of_a_zip_costs_one_frame(tmp_path: Path) -> None:
    """A picture whose checksum in the zip is wrong is counted once, and the others come."""
    good = encoded(flat((1, 2, 3)))
    path = store(tmp_path / "p.zip", {"cat/0.png": good, "cat/1.png": good, "dog/2.png": good})
    content = bytearray(path.read_bytes())
    second = content.index(good, content.index(good) + len(good))
    content[second + len(good) // 2] ^= 0xFF
    path.write_bytes(content)
    pictures, drops = read(path)
    assert [p.label for p in pictures] == [2, 3]
    assert drops == ["unreadable_image"]


def test_a_folder_named_like_a_picture_is_no_picture(tmp_path: Path) -> None:
    """A directory called x.jpg does not end the stream."""
    path = store(tmp_path / "p", {"cat/a.png": encoded(flat((1, 2, 3)))})
    (path / "cat" / "x.jpg").mkdir()
    assert len(read(path)[0]) == 1


def test_an_unknown_class_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    """A folder that is no class of the pipeline is an error that suggests the nearest class."""
    path = store(tmp_path / "p", {"ant/a.png": b"", "dgo/b.png": b""})
    with pytest.raises(SourceError, match=r"'dgo'.*dog") as caught:
        read(path)
    assert caught.value.reason == "unknown_class"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("where", "files", "reason"),
    [
        ("empty", {}, "no_frames"),
        ("empty.zip", {}, "no_frames"),
        ("texts", {"a.txt": b""}, "no_frames"),
        ("all_bad", {"cat/a.png": b"x", "b.jpg": b""}, "no_frames"),
        ("all_bad.zip", {"cat/a.png": b"x", "b.jpg": b""}, "no_frames"),
    ],
)
def test_nothing_to_read_is_an_error(
    tmp_path: Path, where: str, files: dict[str, bytes], reason: str
) -> None:
    """A folder or zip without one readable picture is refused by name."""
    path = store(tmp_path / where, files)
    with pytest.raises(SourceError, match=where) as caught:
        read(path)
    assert caught.value.reason == reason


def test_what_is_not_there_may_come(tmp_path: Path) -> None:
    """As with any other recording, the reason is one that is tried again."""
    with pytest.raises(SourceError, match=r"p\.zip: does not exist") as caught:
        read(tmp_path / "p.zip")
    assert caught.value.reason == "not_found"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_what_is_no_folder_and_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no zip is an error that names it."""
    path = tmp_path / "p.zip"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"p\.zip") as caught:
        read(path)
    assert caught.value.reason == "cannot_open"
