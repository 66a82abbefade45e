"""A sink: a line of CSV per result."""

import csv
from pathlib import Path

from streamexit import Result


class CsvSink:
    """Runs in a thread of its own: it may wait, for a disk or a server, without holding up frames."""

    def __init__(self, path: str, *, base: Path):
        self._file = open(base / path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - until `close`
        self._lines = csv.writer(self._file)

    def write(self, result: Result) -> None:
        """In the order of the stream's frames; an exception is reported, and the next result comes."""
        label = getattr(result.answer, "label", None)  # classification has one
        self._lines.writerow([result.captured_at, result.stream, result.seq, label, result.exit])

    def close(self) -> None:
        """The node ends."""
        self._file.close()
