"""The HTTP server of a node, on its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import uvicorn

from streamexit.control.dispatch import Dispatcher
from streamexit.health import Health
from streamexit.http.app import make_app
from streamexit.http.connections import PatientProtocol
from streamexit.http.history import EVERY_SECONDS, History, Point
from streamexit.http.listening import listen
from streamexit.operations import NodeOperations

GOODBYE_SECONDS = 1


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command line's."""
        yield


class HttpServer:
    """Serves while an `async with` block lasts.

    Args:
        operations: Of the node.
        dispatcher: Carries commands out.
        health: Of the node.
        host: Where to listen.
        port: 0 takes a free one.
        token: See `make_app`.

    Attributes:
        url: Where it listens.

    Raises:
        OperationError: The port is taken, or not ours to take.
    """

    def __init__(
        self,
        operations: NodeOperations,
        dispatcher: Dispatcher,
        health: Health,
        *,
        host: str,
        port: int,
        token: str | None,
    ) -> None:
        self._operations = operations
        self._history = History()
        self._socket = listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}/"
        app = make_app(operations, dispatcher, health, self._history, token=token)
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,  # its own would close the handlers that are there, and silence the node
                log_level="error",
                access_log=False,
                lifespan="off",
                http=PatientProtocol,
                timeout_graceful_shutdown=GOODBYE_SECONDS,
                server_header=False,
            )
        )

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http"),
            asyncio.create_task(self._remember(), name="history"),
        ]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        serving, remembering = self._tasks
        remembering.cancel()
        await asyncio.wait([serving], timeout=2 * GOODBYE_SECONDS)
        serving.cancel()
        await asyncio.wait([serving, remembering], timeout=GOODBYE_SECONDS)
        self._socket.close()

    async def _remember(self) -> None:
        while True:
            self._history.add(
                (stream_id, self._point(stream_id)) for stream_id in self._operations.roster.streams
            )
            await asyncio.sleep(EVERY_SECONDS)

    def _point(self, stream_id: str) -> Point:
        budget = self._operations.reporter.budget(stream_id)
        fps = self._operations.roster.streams[stream_id].fps
        if budget is None:
            return Point(time.time(), None, None, None, None, fps)
        return Point(
            time.time(),
            budget.mean_fraction,
            budget.target_fraction,
            tuple(budget.exit_shares) if budget.frames_in_window else None,
            budget.agreement.value if budget.agreement else None,
            fps,
        )
