"""A TCP proxy that does to a connection what networks do."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
from dataclasses import dataclass


@dataclass
class Weather:
    """What happens to bytes on their way; may be changed at any time.

    Attributes:
        delay: Seconds by which they are late.
        bytes_per_second: At most; 0 for all.
        silent: They are taken and forgotten, in both directions: a connection that is half open.
        held: They are not taken: a peer that has stopped reading and writing.
        corrupt: Share of chunks from the server in which a byte is changed.
        refuse: New connections are reset.
    """

    delay: float = 0.0
    bytes_per_second: float = 0.0
    silent: bool = False
    held: bool = False
    corrupt: float = 0.0
    refuse: bool = False


class Proxy:
    """Listens on a loopback port of its own and passes everything on to another one."""

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        self.weather = Weather()
        self.accepted = 0
        self._target = target_port
        self._random = random.Random(seed)
        self._closing = threading.Event()
        self._links: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self, *, reset: bool = False) -> None:
        """End all connections, politely or with a reset."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            _end(link, reset=reset)

    def close(self) -> None:
        """End everything."""
        self._closing.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.weather.refuse:
                _end(client, reset=True)
                continue
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target), 5)
        except OSError:
            _end(client, reset=True)
            return
        server.settimeout(None)
        with self._lock:
            self._links |= {client, server}
        up = threading.Thread(target=self._pass, args=(client, server, False), daemon=True)
        up.start()
        self._pass(server, client, True)
        up.join()
        with self._lock:
            self._links -= {client, server}
        _end(client)
        _end(server)

    def _pass(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed by `cut`
            while not self._closing.is_set():
                if self.weather.held:
                    self._closing.wait(0.02)
                    continue
                # Not in recv: a socket that another thread closes is reset only once nobody is in it
                if not select.select([source], [], [], 0.05)[0]:
                    continue
                chunk = source.recv(4096)
                if not chunk:
                    break
                self._send(chunk, sink, down)
        for link in (source, sink):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _send(self, chunk: bytes, sink: socket.socket, down: bool) -> None:
        weather = self.weather
        if weather.delay:
            self._closing.wait(weather.delay)
        if weather.bytes_per_second:
            self._closing.wait(len(chunk) / weather.bytes_per_second)
        while self.weather.held and not self._closing.is_set():
            self._closing.wait(0.02)
        if self.weather.silent:
            return
        if down and weather.corrupt and self._random.random() < weather.corrupt:
            damaged = bytearray(chunk)
            damaged[self._random.randrange(len(damaged))] ^= self._random.randrange(1, 256)
            chunk = bytes(damaged)
        sink.sendall(chunk)


def _end(link: socket.socket, *, reset: bool = False) -> None:
    with contextlib.suppress(OSError):
        if reset:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            link.shutdown(socket.SHUT_RDWR)
    link.close()
