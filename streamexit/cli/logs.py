"""How a running node's log is written: for people, or as a line of JSON per event."""

from __future__ import annotations

import json
import logging
from typing import Literal

from streamexit.redact import redact

LogFormat = Literal["console", "json"]


class ConsoleFormatter(logging.Formatter):
    """Problems as the command line says them everywhere, the rest with its time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        if record.levelno >= logging.WARNING:
            word = "error" if record.levelno >= logging.ERROR else "warning"
            return redact(f"{word}: {record.getMessage()}{_trace(self, record)}")
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object per line: at (RFC 3339), level, logger, message, and stream where it is about one."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        from streamexit.wire.messages import timestamp  # here, because pydantic takes its time

        event = {
            "at": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage() + _trace(self, record)),
        }
        stream = getattr(record, "stream", None)
        return json.dumps(event | ({"stream": stream} if stream else {}), ensure_ascii=False)


def formatter(name: LogFormat) -> logging.Formatter:
    """By name."""
    return JsonFormatter() if name == "json" else ConsoleFormatter()


def _trace(formatter_: logging.Formatter, record: logging.LogRecord) -> str:
    return f"\n{formatter_.formatException(record.exc_info)}" if record.exc_info else ""
