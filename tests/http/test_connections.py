"""Connections that nobody uses end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from streamexit.http.connections import PatientProtocol

LIMIT_SECONDS = 30.0
REQUEST = b"GET /film HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
SHORT = b"GET /still HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class Hasty(PatientProtocol):
    """As in a node, with less patience."""

    patience = 0.2


class Exclusive(PatientProtocol):
    """As in a node, with fewer connections."""

    most = 2


class Cinema:
    """A server with an endless answer, and a short one."""

    def __init__(self, protocol: type[PatientProtocol] = Hasty) -> None:
        self.ended = threading.Event()
        app = FastAPI()

        @app.get("/film")
        async def film() -> StreamingResponse:
            return StreamingResponse(self._frames())

        @app.get("/still")
        async def still() -> str:
            return "still"

        config = uvicorn.Config(app, http=protocol, log_config=None, lifespan="off")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()

    async def _frames(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(100_000)
                await asyncio.sleep(0)  # so that the end of the connection is noticed
        finally:
            self.ended.set()

    def connect(self) -> socket.socket:
        """A client's end."""
        return socket.create_connection(self._socket.getsockname(), timeout=LIMIT_SECONDS)

    def close(self) -> None:
        """The end."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(LIMIT_SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def cinema() -> Iterator[Cinema]:
    """Open."""
    with contextlib.closing(Cinema()) as cinema:
        yield cinema


HALVES = [
    b"",
    b"GET /film HTTP/1.1\r\nHost: ",
    b"POST /film HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nhalf",
]


@pytest.mark.parametrize("said", HALVES)
def test_a_connection_without_a_request_is_closed(cinema: Cinema, said: bytes) -> None:
    """Also one whose request does not come to its end."""
    with cinema.connect() as client:
        client.sendall(said)
        while client.recv(1000):
            pass


@pytest.mark.parametrize("said", HALVES[1:])
def test_a_second_request_has_no_more_time(cinema: Cinema, said: bytes) -> None:
    """Than a first one."""
    with cinema.connect() as client:
        client.sendall(SHORT)
        assert client.recv(1000)
        client.sendall(said)
        while client.recv(1000):
            pass


def test_one_connection_too_many_is_closed() -> None:
    """The others are served on."""
    with (
        contextlib.closing(Cinema(Exclusive)) as cinema,
        cinema.connect() as first,
        cinema.connect() as second,
    ):
        for client in (first, second):  # both have been accepted
            client.sendall(SHORT)
            assert client.recv(1000)
        with cinema.connect() as third, contextlib.suppress(ConnectionResetError):
            assert third.recv(1) == b""
        first.sendall(SHORT)
        assert first.recv(1000)


def test_who_reads_is_served() -> None:
    """For as long as it likes: far more than buffers hold."""
    with contextlib.closing(Cinema(PatientProtocol)) as cinema:
        with cinema.connect() as client:
            client.sendall(REQUEST)
            got = 0
            while got < 50_000_000:
                data = client.recv(1_000_000)
                assert data, "the connection was given up"
                got += len(data)
            assert not cinema.ended.is_set()
        assert cinema.ended.wait(LIMIT_SECONDS)


def test_who_does_not_read_is_given_up(cinema: Cinema) -> None:
    """What was made for it ends, though it is still connected."""
    with cinema.connect() as client:
        client.sendall(REQUEST)
        assert cinema.ended.wait(LIMIT_SECONDS)
