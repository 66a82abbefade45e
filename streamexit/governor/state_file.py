"""What is kept over a restart: budgets that were changed at run time, and what was learned of streams."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamexit.errors import DataError, InputError

FORMAT = "streamexit.memory/1"
BEGINNING = '{"schema":"streamexit.memory/'
"""Of every file of ours, whatever happened to the rest."""


class StateFile:
    """One JSON file; whoever reads it sees the old content or the new, never a part.

    Args:
        path: Its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = ""

    def read(self) -> dict[str, dict[str, Any]]:
        """Stream id -> what was kept; nothing where there is no file yet.

        Raises:
            InputError: It is somebody else's; it is left as it is.
            DataError: It is ours, and damaged.
        """
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise InputError(f"state_file: {self._path} cannot be read: {error}") from error
        if text and not text.startswith(BEGINNING):
            raise InputError(
                f"state_file: {self._path} is another kind of file; give the path of one that does not exist "
                "yet"
            )
        try:
            content = json.loads(text)
            if content["schema"] != FORMAT:
                raise ValueError(f"schema {content['schema']!r} is not {FORMAT!r}")
            streams = content["streams"]
            if not all(isinstance(kept, dict) for kept in streams.values()):
                raise ValueError("streams must be a mapping of mappings")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"state_file: {self._path} cannot be used ({error!s})") from error
        return dict(streams)

    def set_aside(self) -> Path:
        """Give a file that cannot be used another name, so that it is not lost."""
        return self._path.replace(self._path.with_name(f"{self._path.name}.unusable"))

    def write(self, streams: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the file, if that changes anything.

        Raises:
            OSError: It cannot be written.
        """
        text = json.dumps({"schema": FORMAT, "streams": streams}, separators=(",", ":"))
        if text == self._written:
            return
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        finally:
            beside.unlink(missing_ok=True)
        self._written = text
