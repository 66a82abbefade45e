"""From an address to an open FFmpeg container, which may reach nothing but that address."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import (
    ConnectionRefusedError,
    FFmpegError,
    FileNotFoundError,
    HTTPForbiddenError,
    HTTPNotFoundError,
    HTTPUnauthorizedError,
    InvalidDataError,
    LookupError,
    PermissionError,
    TimeoutError,
)

from streamexit.errors import SourceError
from streamexit.sources.access import Access
from streamexit.sources.addresses import Address
from streamexit.sources.source import Watch
from streamexit.sources.web import Web

OpenFunction = Callable[..., InputContainer]

PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443}

PROTOCOLS = {
    "rtsp": "rtp,udp,tcp",
    "rtsps": "rtp,srtp,udp,tcp,tls",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,rtmp,tls,tcp",
    "udp": "udp",
    "tcp": "tcp",
}
"""All that FFmpeg may speak for a scheme, whatever the data says. Files and stdin come through a
descriptor that is already open, HTTP through `Web`: there it may open nothing by itself."""

UDP_BUFFER_PACKETS = 28_000
"""Of 188 bytes: five megabytes, a second of a fast stream."""


@contextmanager
def open_container(
    address: Address,
    access: Access,
    *,
    timeout: float,
    watch: Watch,
    open_with: OpenFunction = av.open,
) -> Iterator[InputContainer]:
    """Open `address`, and close it.

    Args:
        address: Of a kind that FFmpeg reads.
        access: What may be reached.
        timeout: Seconds that FFmpeg may wait for the network, each time.
        watch: Ends what waits, as far as it can be ended.
        open_with: `av.open`, or something like it.

    Raises:
        SourceError: It cannot be opened, or breaks while it is used.
    """
    with ExitStack() as stack:
        web: Web | None = None
        try:
            if address.kind in ("http", "hls"):
                web = Web(address, access, timeout)
                stack.callback(web.close)
                watch.on_stop(web.abort)
                container = _open_web(address, web, open_with)
            elif address.kind in ("file", "stdin"):
                container = _open_descriptor(address, access, stack, open_with)
            else:
                container = _open_network(address, access, timeout, open_with)
            stack.enter_context(container)
            yield container
        except FFmpegError as error:
            if web is not None and web.problem is not None:
                raise web.problem from error
            raise translated(address, error) from error
        if web is not None and web.problem is not None:
            raise web.problem


def _open_web(address: Address, web: Web, open_with: OpenFunction) -> InputContainer:
    container_format = web.begin() or address.options.format
    options = {
        "protocol_whitelist": "none",  # nested demuxers would open by themselves, past `Web`
        "http_persistent": "0",
        "extension_picky": "0",
        "allowed_extensions": "ALL",
    }
    if container_format == "mpjpeg":  # it has no times of its own
        options["use_wallclock_as_timestamps"] = "1"
    return open_with(
        web.root_url,  # behind redirections; what is relative is relative to it
        format=container_format,
        options=options,
        io_open=web.open,
        metadata_errors="replace",
    )


def _open_descriptor(
    address: Address, access: Access, stack: ExitStack, open_with: OpenFunction
) -> InputContainer:
    if address.kind == "stdin":
        descriptor = 0
    else:
        descriptor = access.open_file(Path(address.location))
        stack.callback(os.close, descriptor)  # FFmpeg works on a duplicate
    return open_with(
        "fd:",
        format=address.options.format,
        options={"fd": str(descriptor), "protocol_whitelist": "fd"},
        metadata_errors="replace",
    )


def _open_network(
    address: Address, access: Access, timeout: float, open_with: OpenFunction
) -> InputContainer:
    url, options = address.location, {}
    microseconds = str(round(timeout * 1e6))
    container_format = address.options.format
    if address.kind == "usb":
        container_format = "video4linux2"
        options = _usb_options(address)
    else:
        # Without the latter two seconds of frames are hoarded to guess a rate that nobody needs
        options = {"protocol_whitelist": PROTOCOLS[address.scheme], "fpsprobesize": "0"}
    if address.kind in ("rtsp", "rtmp", "tcp"):
        parts = address.parts
        [host, *_] = access.resolve(
            parts.hostname or "", parts.port or PORTS.get(address.scheme, 0)
        )
        # FFmpeg is given the address that was checked, not a name to resolve once more
        url = address.with_credentials(host)
    if address.kind == "rtsp":
        options |= {
            "rtsp_transport": address.options.transport,
            "timeout": microseconds,
            "allowed_media_types": "video",
        }
    elif address.kind == "udp":
        options |= {
            "timeout": microseconds,
            "fifo_size": str(UDP_BUFFER_PACKETS),
            "overrun_nonfatal": "1",
        }
    elif address.kind in ("rtmp", "tcp"):
        options["rw_timeout"] = microseconds
    return open_with(url, format=container_format, options=options, metadata_errors="replace")


def _usb_options(address: Address) -> dict[str, str]:
    wanted = address.options
    options = {}
    if wanted.size is not None:
        options["video_size"] = f"{wanted.size[0]}x{wanted.size[1]}"
    if wanted.rate is not None:
        options["framerate"] = f"{wanted.rate:g}"
    if wanted.pixel_format is not None:
        options["input_format"] = wanted.pixel_format
    return options


def translated(address: Address, error: FFmpegError) -> SourceError:
    """What an error of FFmpeg means for a source."""
    if address.kind in ("rtsp", "rtmp") and isinstance(error, InvalidDataError):
        return SourceError(
            f"{address}: the connection broke before an answer, or the answer makes no sense",
            reason="connection_lost",
        )
    if isinstance(error, EOFError) and not address.live:
        return SourceError(
            f"{address}: ends before there is anything to see", reason="invalid_data"
        )
    for kinds, reason, meaning in _MEANINGS:
        if isinstance(error, kinds):
            return SourceError(f"{address}: {meaning}", reason=reason)
    if error.errno in _NUMBERS:
        reason, meaning = _NUMBERS[error.errno]
        return SourceError(f"{address}: {meaning}", reason=reason)
    if address.kind == "udp" and error.errno == errno.EIO:
        return SourceError(
            f"{address}: nothing came in time; check that somebody sends", reason="timeout"
        )
    if address.live:
        what = (error.strerror or str(error)).lower()
        return SourceError(
            f"{address}: the connection broke ({what}); check address, credentials and network",
            reason="connection_lost",
        )
    what = (error.strerror or str(error)).lower()
    return SourceError(
        f"{address}: {what}; check that it is a video that ffmpeg can play", reason="cannot_open"
    )


_MEANINGS: tuple[tuple[tuple[type[Exception], ...], str, str], ...] = (
    (
        (HTTPUnauthorizedError, HTTPForbiddenError),
        "unauthorised",
        "user or password are not accepted; check them",
    ),
    ((HTTPNotFoundError,), "not_found", "there is no such stream; check the path"),
    ((FileNotFoundError,), "not_found", "there is no such device; check the path"),
    ((PermissionError,), "not_permitted", "we are not permitted to read it"),
    ((ConnectionRefusedError,), "refused", "connection refused; check host and port"),
    ((TimeoutError,), "timeout", "no answer in time; check the network"),
    ((InvalidDataError,), "invalid_data", "not a video, or damaged (invalid data found)"),
    ((LookupError,), "unsupported_codec", "FFmpeg has no decoder for it; choose another codec"),
)

_NO_ROUTE = "unreachable", "no route to the host; check address and network"
_NUMBERS = {
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.ENETUNREACH: _NO_ROUTE,
    errno.EADDRINUSE: (
        "refused",
        "somebody listens at that port already; give each stream a port of its own, and look for another "
        "node that runs",
    ),
}
