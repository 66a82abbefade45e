"""Where things lie that were computed once for this machine and may be thrown away at any time."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """$STREAMEXIT_CACHE, or streamexit/ in the user's cache folder (XDG base directories)."""
    named = os.environ.get("STREAMEXIT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamexit"


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` whole, or not at all.

    Two processes may do so at the same time: the first wins, and both wrote the same.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        yield unfinished
        with contextlib.suppress(OSError):  # somebody else was faster
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
