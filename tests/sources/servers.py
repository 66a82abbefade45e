"""Servers on loopback that play recordings as cameras of many kinds."""

from __future__ import annotations

import base64
import contextlib
import http.server
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.conftest import absent

PATIENCE = 20.0


def command(name: str) -> str:
    """A program from Debian."""
    found = shutil.which(name)
    if found is None:
        absent(f"{name} (apt install {name})")
        raise AssertionError
    return found


@contextlib.contextmanager
def ffmpeg(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """FFmpeg's command at work, for as long as it is needed."""
    process = subprocess.Popen(
        [command("ffmpeg"), "-v", "error", "-nostdin", "-y", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder with ranges, and cameras made of functions."""

    folder: Path
    cameras: dict[str, Callable[[Handler], None]]
    seen: list[str]
    password: str | None

    def do_GET(self) -> None:
        """Answer."""
        self.seen.append(self.path)
        if self.password is not None and not self._may_come_in():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with contextlib.suppress(OSError):  # the client has gone
            camera = self.cameras.get(self.path)
            if camera is not None:
                camera(self)
            else:
                self._send_file()

    def _may_come_in(self) -> bool:
        wanted = base64.b64encode(f"viewer:{self.password}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {wanted}"

    def _send_file(self) -> None:
        file = self.folder / unquote(self.path).lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        begin, end = 0, len(content) - 1
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), int(last) if last else end
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end + 1 - begin))
        self.end_headers()
        self.wfile.write(content[begin : end + 1])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def web_server(
    folder: Path,
    cameras: dict[str, Callable[[Handler], None]] | None = None,
    *,
    password: str | None = None,
    certificate: Path | None = None,
    host: str = "127.0.0.1",
) -> Iterator[tuple[str, list[str]]]:
    """Serve; yields the address, and the list of paths that were asked for."""
    seen: list[str] = []
    given: dict[str, Any] = {
        "folder": folder,
        "cameras": cameras or {},
        "seen": seen,
        "password": password,
    }
    with http.server.ThreadingHTTPServer((host, 0), type("Here", (Handler,), given)) as server:
        server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        scheme = "https" if certificate else "http"
        try:
            yield f"{scheme}://{host}:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join(PATIENCE)


def mjpeg_camera(
    pictures: list[bytes], *, pause: float = 0.02, preamble: bytes = b"", first: int = 0
) -> Any:
    """A camera that sends JPEG after JPEG, as multipart/x-mixed-replace (W3C, RFC 2046).

    The preamble, and the `first` bytes after it, come by themselves.
    """

    def serve(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        head = "--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
        parts = [head.format(len(picture)).encode() + picture + b"\r\n" for picture in pictures]
        for piece in (preamble, parts[0][:first], parts[0][first:], *parts[1:]):
            handler.wfile.write(piece)
            time.sleep(pause)

    return serve


def make_certificate(folder: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, key included, PEM."""
    file = folder / "camera.pem"
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [command("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out",
         str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_bytes(key.read_bytes() + certificate.read_bytes())
    return file
