"""Pictures that are decoded once and then mapped from disk: for sets that do not fit into memory."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamexit.errors import DataError

CACHE = ".streamexit-cache"
"""Folder under a data set's root for decoded pictures."""


def cache_file(root: Path, part: str, size: str, names: Sequence[str]) -> Path:
    """Where a part's decoded pictures lie; a picture replaced under its old name goes unnoticed.

    Args:
        root: Of the data set.
        part: Of the data set.
        size: What the pictures are brought to, for people to read.
        names: Of all pictures, in order.
    """
    key = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    return root / CACHE / f"{part}-{size}-{key}.npy"


def map_decoded(
    cache: Path, shape: tuple[int, ...], pictures: Iterable[NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """The pictures uint8 [N, ...], mapped into memory; decoded and written first where `cache` is not.

    Args:
        cache: See `cache_file`; it appears only when it is whole.
        shape: [N, ...].
        pictures: N of them, uint8 [...]; consumed only when they are to be written.

    Raises:
        DataError: No room, or a folder that cannot be written.
    """
    if not cache.is_file():
        _write(cache, shape, pictures)
    mapped: NDArray[np.uint8] = np.load(cache, mmap_mode="c")  # PyTorch wants it writable
    return mapped


def _write(cache: Path, shape: tuple[int, ...], pictures: Iterable[NDArray[np.uint8]]) -> None:
    needed = int(np.prod(shape))
    unfinished = cache.with_suffix(f".{os.getpid()}.partial")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache.parent).free
        if free < needed:
            raise DataError(
                f"{cache}: needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free"
            )
        try:
            with unfinished.open("wb") as out:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, header)
                for picture in pictures:
                    out.write(picture.tobytes())
            unfinished.replace(cache)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{cache}: cannot write the decoded pictures: {error}") from error
