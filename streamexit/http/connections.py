"""Connections that are given up: silent ones, and those whose other end takes nothing more."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """Waits so long and no longer: uvicorn itself waits for ever for a first request, and for a reader.

    Attributes:
        patience: Seconds.
    """

    patience: ClassVar[float] = 10.0
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let one request come."""
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(self.patience, self._close_if_silent)

    def pause_writing(self) -> None:
        """The other end is behind; what is open for it (a preview) holds a place until it catches up."""
        super().pause_writing()
        self._stuck = asyncio.get_running_loop().call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._stuck:
            self._stuck.cancel()

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()
