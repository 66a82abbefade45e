"""From what the user writes to an address: which kind of source, where, with which options."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit

from streamexit.documents import did_you_mean
from streamexit.errors import SourceError
from streamexit.plugins import load_plugin, plugins
from streamexit.redact import redact, redact_address

Kind = Literal[
    "file", "stdin", "rtsp", "rtmp", "http", "hls", "udp", "tcp", "usb",
    "images", "watch", "synthetic", "plugin",
]  # fmt: skip

SCHEMES: dict[str, Kind] = {
    "file": "file",
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "rtmp",
    "rtmps": "rtmp",
    "http": "http",
    "https": "http",
    "udp": "udp",
    "tcp": "tcp",
}
"""Scheme of a URL -> kind. A URL whose path ends in .m3u8 is of kind hls."""

WORDS: dict[str, Kind] = {
    "images": "images",
    "watch": "watch",
    "synthetic": "synthetic",
    "usb": "usb",
    "stdin": "stdin",
}
"""What may stand before a colon instead -> kind."""

RECORDING_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
"""A URL whose path ends so is taken for a recording, unless `live` says otherwise."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_NO_SCHEME = re.compile(r"^[^/\s]*:[^/\s]*@")


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a source may be told beyond its address.

    Attributes:
        username: For RTSP, RTMP and HTTP.
        password: Likewise.
        transport: RTSP: how pictures come.
        live: Of HTTP, HLS, stdin and TCP: whether it goes on without us; None decides by the address.
        tls_verify: HTTPS: whether the server must have a certificate that is trusted.
        ca_file: HTTPS: who else is trusted, PEM.
        size: USB cameras: width and height in pixels that are asked for.
        rate: USB cameras: frames per second that are asked for.
        pixel_format: USB cameras: FFmpeg's name of a pixel format or codec, such as mjpeg.
        format: FFmpeg's name of the container, where the data does not show it.
        existing: Watched folders: begin with the recordings that are there.
        settle_seconds: Watched folders: a recording is whole once it has not grown for so long.
    """

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    transport: Literal["tcp", "udp"] = "tcp"
    live: bool | None = None
    tls_verify: bool = True
    ca_file: Path | None = None
    size: tuple[int, int] | None = None
    rate: float | None = None
    pixel_format: str | None = None
    format: str | None = None
    existing: bool = False
    settle_seconds: float = 2.0


NO_OPTIONS = SourceOptions()

ONLY_FOR: dict[str, tuple[Kind, ...]] = {
    "username": ("rtsp", "rtmp", "http", "hls"),
    "password": ("rtsp", "rtmp", "http", "hls"),
    "transport": ("rtsp",),
    "live": ("http", "hls", "stdin", "tcp"),
    "tls_verify": ("http", "hls"),
    "ca_file": ("http", "hls"),
    "size": ("usb",),
    "rate": ("usb",),
    "pixel_format": ("usb",),
    "format": ("file", "stdin", "udp", "tcp", "http"),
    "existing": ("watch",),
    "settle_seconds": ("watch",),
}
"""Option -> kinds that it means something to."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where pictures come from.

    Attributes:
        kind: What kind of source.
        scheme: As written; the kind where there is none.
        location: A URL without credentials, a path, or what stands behind the colon.
        options: Credentials of the URL among them.
    """

    kind: Kind
    scheme: str
    location: str
    options: SourceOptions = NO_OPTIONS

    @property
    def live(self) -> bool:
        """Whether the source goes on without us."""
        if self.kind in ("rtsp", "rtmp", "udp", "usb"):
            return True
        if self.kind == "plugin":
            return bool(load_plugin("streamexit.sources", self.scheme).live)
        if self.kind not in ONLY_FOR["live"]:
            return False
        if self.options.live is not None:
            return self.options.live
        if self.kind == "stdin":
            return False
        return Path(urlsplit(self.location).path).suffix.lower() not in RECORDING_SUFFIXES

    @property
    def parts(self) -> SplitResult:
        """Of a URL."""
        return urlsplit(self.location)

    def with_credentials(self, host: str | None = None) -> str:
        """The URL with user and password, and with another host. Never to be shown.

        Args:
            host: A name, or an IPv4 or IPv6 address; None leaves the one that is there.
        """
        parts = self.parts
        place = host or parts.hostname or ""
        place = f"[{place}]" if ":" in place else place
        place += f":{parts.port}" if parts.port else ""
        user = quote(self.options.username or "", safe="")
        if self.options.password is not None:
            user += ":" + quote(self.options.password, safe="")
        return parts._replace(netloc=f"{user}@{place}" if user else place).geturl()

    def __str__(self) -> str:
        """For people; without credentials."""
        words = (*WORDS.values(), "plugin")
        shown = f"{self.scheme}:{self.location}" if self.kind in words else self.location
        return redact(shown)


def parse_address(
    text: str, options: SourceOptions = NO_OPTIONS, *, base: Path = Path()
) -> Address:
    """Read a source.

    Args:
        text: A path, a URL of one of `SCHEMES`, a device, or one of `WORDS`, or the name of a plugin,
            with a colon.
        options: Beyond it.
        base: Relative paths start here.

    Raises:
        SourceError: It cannot be understood; the message says what would be right.
    """
    _refuse_odd(text)
    address = _parse(text, options, base)
    for name, kinds in ONLY_FOR.items():
        if getattr(options, name) != getattr(NO_OPTIONS, name) and address.kind not in kinds:
            raise _bad(text, f"{name} is for {_listed(kinds)}, not for {address.kind}")
    return address


def _refuse_odd(text: str) -> None:
    """What no path, URL or device can hold."""
    try:
        os.fsencode(text)
        odd = any(ord(c) < 32 for c in text)
    except UnicodeEncodeError:
        odd = True
    if odd:
        raise _bad(repr(text)[1:-1], "holds control characters; leave them out")


def _parse(text: str, options: SourceOptions, base: Path) -> Address:
    name, colon, rest = text.partition(":")
    if colon and name not in {**SCHEMES, **WORDS} and name in plugins("streamexit.sources"):
        return Address("plugin", name, rest, options)
    if match := _SCHEME.match(text):
        return _parse_url(text, match.group(1).lower(), options, base)
    if text in ("-", "stdin"):
        return Address("stdin", "stdin", "", options)
    word, colon, rest = text.partition(":")
    if colon and word in WORDS:
        kind = WORDS[word]
        if kind == "usb":
            if not (rest.startswith("/") or rest.isdecimal()):
                raise _bad(text, "names no device; write usb:0 or usb:/dev/v4l/by-id/...")
            located = rest if rest.startswith("/") else f"/dev/video{rest}"
            return Address("usb", word, located, options)
        located = rest if kind == "synthetic" else str(base / rest)
        return Address(kind, word, located, options)
    if text.startswith("/dev/video"):
        return Address("usb", "usb", text, options)
    _refuse_mistyped(text)
    return Address("file", "file", str(base / text), options)


def _refuse_mistyped(text: str) -> None:
    """URLs that would be taken for files, and shown with their passwords when there is no such file."""
    word, _, rest = text.partition(":")
    if word.lower() in SCHEMES and rest.startswith("/"):
        raise _bad(text, f"names no host; did you mean {word}://...?")
    if _NO_SCHEME.match(text):
        raise _bad(text, "names no scheme; did you mean rtsp://...? A file of that name is ./...")


def _parse_url(text: str, scheme: str, options: SourceOptions, base: Path) -> Address:
    kind = SCHEMES.get(scheme)
    if kind is None:
        known = [*SCHEMES, *plugins("streamexit.sources")]
        raise _bad(text, f"scheme {scheme!r} is unknown; {did_you_mean(scheme, known)}")
    if kind == "file":
        return Address("file", "file", str(base / text.removeprefix("file://")), options)
    parts = _split(text)
    if parts.username is not None and options.username is not None:
        raise _bad(text, "has a user of its own beside `username`; keep one of them")
    if parts.username is not None:
        password = unquote(parts.password) if parts.password is not None else options.password
        options = replace(options, username=unquote(parts.username), password=password)
    elif options.password is not None and options.username is None:
        raise _bad(text, "has a password but no user; give `username`, too")
    if kind == "http" and parts.path.lower().endswith((".m3u8", ".m3u")):
        kind = "hls"
    place = parts.netloc.rpartition("@")[2]
    return Address(kind, scheme, parts._replace(netloc=place).geturl(), options)


def _split(text: str) -> SplitResult:
    if any(c.isspace() for c in text):
        raise _bad(text, "holds white space; percent-encode it")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _bad(
            text,
            "cannot be split into host, port and path; a user or password with characters such as "
            "/ ? # must be percent-encoded, or given as `username` and `password`",
        ) from error
    if port == 0 or (not parts.hostname and parts.scheme != "udp"):
        raise _bad(text, "names no host, or port 0; write scheme://host:port/path")
    if parts.scheme in ("tcp", "udp") and port is None:
        raise _bad(text, f"names no port; write {parts.scheme}://host:port")
    return parts


def _bad(text: str, what: str) -> SourceError:
    return SourceError(f"{redact_address(text)}: {what}", reason="bad_source")


def _listed(kinds: tuple[Kind, ...]) -> str:
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} and {kinds[-1]}"
