"""Results as lines of JSON in a file: the same messages that MQTT carries."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from streamexit.errors import InputError
from streamexit.wire.messages import Message


class JsonlSink:
    """One message a line.

    Args:
        path: Of the file.
        append: Keep what it holds already.

    Raises:
        InputError: The file cannot be written.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab" if append else "wb", buffering=0)
        except OSError as error:
            raise self._fault(error) from error
        self._size = os.fstat(self._file.fileno()).st_size

    def write(self, message: Message) -> None:
        """Append one message, whole or not at all.

        Raises:
            InputError: It cannot be written.
        """
        line = message.encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                self._take_back()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._fault(error) from error
        self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _take_back(self) -> None:
        """Half a line, which would spoil the next one, too."""
        with contextlib.suppress(OSError):
            self._file.truncate(self._size)
            self._file.seek(self._size)

    def _fault(self, error: OSError) -> InputError:
        return InputError(f"{self._path}: cannot be written: {error.strerror}")
