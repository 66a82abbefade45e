"""A folder or zip of pictures, `class/name.jpg`, every picture with its true label.

Pictures come in the order of their file names, classes mixed, so that numbered pictures keep the
order in which they were taken.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from av.error import FFmpegError

from streamexit.documents import did_you_mean
from streamexit.errors import SourceError
from streamexit.preprocessing import Image, InputConverter, Preprocessing
from streamexit.sources.access import EVERYWHERE, Access
from streamexit.sources.source import DropReport, Picture, Watch

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


class ImageSource:
    """Pictures from a folder or a zip.

    Args:
        path: The folder or zip. Pictures directly in it have no label.
        preprocessing: Of the pipeline; None for pictures at their own size.
        labels: Of the pipeline; folder names are looked up here.
        rate: Pictures per second, for their timestamps.
        access: What may be read.
    """

    live = False

    def __init__(
        self,
        path: Path,
        preprocessing: Preprocessing | None,
        *,
        labels: Sequence[str],
        rate: float,
        access: Access = EVERYWHERE,
    ) -> None:
        self._path = path
        self._preprocessing = preprocessing
        self._labels = {name: index for index, name in enumerate(labels)}
        self._rate = rate
        self._access = access

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`. A file that cannot be read as a picture counts as one dropped frame."""
        with ExitStack() as stack:
            names, read = self._open(stack)
            yield from self._decoded(names, read, report)

    def _decoded(
        self, names: list[str], read: Callable[[str], bytes], report: DropReport
    ) -> Iterator[Picture]:
        convert = InputConverter(self._preprocessing)
        decoded = 0
        for index, (name, label) in enumerate(self._labelled(names)):
            decoded_one = _decode(read, name, convert)
            if decoded_one is None:
                report("unreadable_image")
                continue
            decoded += 1
            image, size = decoded_one
            yield Picture(image, index / self._rate, label, size)
        if not decoded:
            raise SourceError(
                f"images:{self._path}: none of its {len(names)} files could be read as a picture",
                reason="no_frames",
            )

    def _open(self, stack: ExitStack) -> tuple[list[str], Callable[[str], bytes]]:
        """The picture files' relative names, and how to read one."""
        if self._path.is_dir():
            files = [
                p for p in self._path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            ]
            names = [p.relative_to(self._path).as_posix() for p in files]
            return self._in_order(names), self._read
        if not self._path.exists():
            raise SourceError(
                f"images:{self._path}: does not exist; give a folder or a zip of class/name.jpg",
                reason="not_found",
            )
        try:
            file = stack.enter_context(os.fdopen(self._access.open_file(self._path), "rb"))
            archive = stack.enter_context(zipfile.ZipFile(file))
        except (zipfile.BadZipFile, OSError) as error:
            raise SourceError(
                f"images:{self._path}: neither a folder nor a zip ({error})", reason="cannot_open"
            ) from error
        names = [n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in SUFFIXES]
        return self._in_order(names), archive.read

    def _read(self, name: str) -> bytes:
        with os.fdopen(self._access.open_file(self._path / name), "rb") as file:
            return file.read()

    def _in_order(self, names: list[str]) -> list[str]:
        if not names:
            raise SourceError(
                f"images:{self._path}: holds no pictures ({', '.join(sorted(SUFFIXES))})",
                reason="no_frames",
            )
        return sorted(names, key=lambda name: (PurePosixPath(name).name, name))

    def _labelled(self, names: Sequence[str]) -> list[tuple[str, int | None]]:
        classes = {name: PurePosixPath(name).parent.name for name in names}
        for unknown in sorted(set(classes.values()) - set(self._labels) - {""}):
            raise SourceError(
                f"images:{self._path}: class {unknown!r} is not one of the pipeline's; "
                f"{did_you_mean(unknown, self._labels)}",
                reason="unknown_class",
            )
        return [(name, self._labels.get(classes[name])) for name in names]


def _decode(
    read: Callable[[str], bytes], name: str, convert: InputConverter
) -> tuple[Image, tuple[int, int]] | None:
    """The network's input and the picture's own width and height.

    None when the file is no picture, damaged, of an absurd size, gone, or not to be read.
    """
    try:
        encoded = np.frombuffer(read(name), np.uint8)
        rgb = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB) if encoded.size else None
        if rgb is None:
            return None
        return convert.from_array(rgb.astype(np.uint8)), (rgb.shape[1], rgb.shape[0])
    except SourceError as error:
        if error.reason == "policy":  # of the configuration, and to be said
            raise
        return None
    except (OSError, ValueError, MemoryError, RuntimeError, zipfile.BadZipFile):
        return None
    except (zlib.error, cv2.error, FFmpegError):
        return None
