"""Results as lines of JSON in a file: the same messages that MQTT carries."""

from __future__ import annotations

from pathlib import Path

from streamexit.errors import InputError
from streamexit.wire.messages import Message


class JsonlSink:
    """One message a line.

    Args:
        path: Overwritten.

    Raises:
        InputError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error

    def write(self, message: Message) -> None:
        """Append one message."""
        self._file.write(message.encode() + b"\n")

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()
