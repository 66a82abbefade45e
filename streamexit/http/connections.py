"""Connections that are given up: silent ones, and those whose other end takes nothing more."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """Waits so long and no longer: uvicorn itself waits for ever for the rest of a request, and for a reader.

    Attributes:
        patience: Seconds.
        most: Connections at a time; one that comes beyond is closed.
    """

    patience: ClassVar[float] = 10.0
    most: ClassVar[int] = 200
    _unasked: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let a request come."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.transport.abort()
        self._wait_for_request()

    def on_response_complete(self) -> None:
        """Let another one come."""
        self._wait_for_request()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is waited for."""
        super().connection_lost(exc)
        for timer in (self._unasked, self._stuck):
            if timer:
                timer.cancel()

    def pause_writing(self) -> None:
        """The other end is behind; what is open for it (a preview) holds a place until it catches up."""
        super().pause_writing()
        self._stuck = asyncio.get_running_loop().call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._stuck:
            self._stuck.cancel()

    def _wait_for_request(self) -> None:
        if self._unasked:
            self._unasked.cancel()
        loop = asyncio.get_running_loop()
        self._unasked = loop.call_later(self.patience, self._close_if_incomplete)

    def _close_if_incomplete(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self.transport.close()
