"""HTTP for FFmpeg: whatever a container asks for is fetched here, so that every host is checked.

FFmpeg's own HTTP would follow redirections and playlists to any host. Here each connection is made
to an address that `Access` has seen, certificates are verified, credentials never become part of a
URL, and every read has a deadline.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import quote, urlsplit

from streamexit.errors import SourceError
from streamexit.sources.access import Access
from streamexit.sources.addresses import Address
from streamexit.sources.pinned_http import make_opener

AGENT = "streamexit"
HLS_TYPES = ("application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl")


class Web:
    """Fetches for one opening of a source.

    Args:
        address: Of kind http or hls.
        access: What may be reached.
        timeout: Seconds that a connection or a read may take.

    Attributes:
        root_url: Of the source itself, behind all redirections; once `begin` has returned.
        problem: The last one that FFmpeg was only told as an end of data; None once data came again.
    """

    def __init__(self, address: Address, access: Access, timeout: float) -> None:
        self._address = address
        self._access = access
        self._timeout = timeout
        self._own = {address.parts.hostname or ""}
        self._closed = False
        self._open: set[WebFile] = set()
        self._opener = make_opener(address, access, self._own)
        self.root_url = address.location
        self.problem: SourceError | None = None
        self._root: WebFile | None = None

    def begin(self) -> str | None:
        """Fetch the source itself; the container format that the server's answer asks for.

        Raises:
            SourceError: It cannot be had.
        """
        self._root = self._fetch(self._address.location, {})
        self.root_url = self._root.url
        self._own.add(urlsplit(self.root_url).hostname or "")
        kind = self._root.content_type
        if kind.startswith("multipart/"):
            self._root.skip_preamble()
            return "mpjpeg"
        if self._address.kind == "hls" or kind in HLS_TYPES:
            return "hls"
        return None

    def open(self, url: str, flags: int, options: dict[str, str]) -> WebFile:
        """Called by FFmpeg for the source and for all that it leads to; see `av.open`, io_open.

        Raises:
            SourceError: It leads to where it must not.
        """
        if self._closed:
            raise SourceError("interrupted", reason="stopped")
        if self._root is not None:
            root, self._root = self._root, None
            return root
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise SourceError(
                f"{self._address}: leads to {parts.scheme or 'a'} address {url!r}; only http and https are "
                "followed (encrypted playlists are not supported)",
                reason="policy",
            )
        try:
            self._access.check_host(parts.hostname or "", self._own)
            return self._fetch(url, options)
        except SourceError as error:
            if error.reason == "policy":
                raise
            self.problem = error
            return WebFile(self, url, None)

    def abort(self) -> None:
        """End everything that is being read, from another thread."""
        self._closed = True
        for file in list(self._open):
            file.abort()

    def close(self) -> None:
        """Close what FFmpeg left open."""
        self._closed = True
        for file in list(self._open):
            file.close()

    def _fetch(self, url: str, options: dict[str, str]) -> WebFile:
        request = urllib.request.Request(
            _encoded(url), headers={"User-Agent": AGENT, "Accept": "*/*"}
        )
        if "offset" in options:
            last = int(options["end_offset"]) - 1 if "end_offset" in options else ""
            request.add_header("Range", f"bytes={options['offset']}-{last}")
        return WebFile(self, url, self.ask(request))

    def ask(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request; redirections and authentication are seen to.

        Raises:
            SourceError: Translated.
        """
        try:
            response = self._opener.open(request, timeout=self._timeout)
        except SourceError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self.translated(error) from error
        assert isinstance(response, http.client.HTTPResponse)
        return response

    def reading(self, file: WebFile, *, ended: bool = False) -> None:
        """Note which files are open, so that `close` can end them."""
        if ended:
            self._open.discard(file)
        else:
            self._open.add(file)
            if self._closed:
                file.abort()

    def translated(self, error: Exception) -> SourceError:
        """What an error of Python's HTTP means."""
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            return self._problem(*_status_meaning(error.code))
        if isinstance(cause, SourceError):
            return cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return self._problem(
                f"its certificate is not trusted ({cause.verify_message}); name its issuer with ca_file, "
                "or set tls_verify: false",
                "certificate",
            )
        if isinstance(cause, ConnectionRefusedError):
            return self._problem("connection refused; check host and port", "refused")
        if isinstance(cause, TimeoutError):
            return self._problem("no answer in time; check the network", "timeout")
        if isinstance(cause, OSError) and cause.errno in UNREACHABLE:
            return self._problem("no route to the host; check the network", "unreachable")
        return self._problem(f"the connection broke ({type(cause).__name__})", "connection_lost")

    def _problem(self, what: str, reason: str) -> SourceError:
        return SourceError(f"{self._address}: {what}", reason=reason)


LONGEST_PREAMBLE = 64 * 1024
"""Bytes before the first part of a multipart body."""

UNRESERVED = "%/:?=&#+,;@[]~!$'()*"
"""What stays as it is in a path or a query; % because it may be encoded already."""

UNREACHABLE = frozenset({101, 113})
"""ENETUNREACH and EHOSTUNREACH of Linux."""


class WebFile:
    """A response as a file for FFmpeg; seekable where the server says so.

    Args:
        web: Whose.
        url: That was asked for.
        response: None stands for one that could not be had: it ends at once.
    """

    def __init__(self, web: Web, url: str, response: http.client.HTTPResponse | None) -> None:
        self._web = web
        self._response = response
        self._position = 0
        self._ahead = b""  # read already, not yet handed out
        self.url = response.url if response else url
        headers = response.headers if response else None
        self.content_type = headers.get_content_type() if headers else ""
        ranges = headers is not None and headers.get("Accept-Ranges", "").lower() == "bytes"
        length = headers.get("Content-Length", "") if headers else ""
        self._length = int(length) if ranges and length.isdecimal() else None
        web.reading(self)

    def skip_preamble(self) -> None:
        """Go to the first delimiter line of a multipart body (RFC 2046, section 5.1.1).

        FFmpeg takes no text before it, and goes back over the line once it has read it, which it
        can only where the line came in one piece. A network cuts where it likes.

        Raises:
            SourceError: The connection broke.
        """
        assert self._response is not None
        seen = b""
        try:
            while len(seen) < LONGEST_PREAMBLE:
                line = self._response.readline(LONGEST_PREAMBLE)
                if line.startswith(b"--"):
                    self._ahead = line
                    return
                if not line:
                    break
                seen += line
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._web.translated(error) from error
        self._ahead = seen  # FFmpeg shall judge it

    def read(self, size: int) -> bytes:
        """What has arrived, at most `size` bytes; waits for the first. Empty at the end."""
        if self._response is None:
            return b""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            self._position += len(data)
            return data
        try:
            data = self._response.read1(size)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            self._web.problem = self._web.translated(error)
            return b""
        if data:
            self._web.problem = None
        self._position += len(data)
        return data

    def seekable(self) -> bool:
        """Whether the server gives any part of it."""
        return self._length is not None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go on elsewhere; costs a new request."""
        assert self._length is not None
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        wanted = base + offset
        if wanted != self._position:
            self.close()
            self._position = wanted
            if wanted < self._length:
                headers = {"User-Agent": AGENT, "Range": f"bytes={wanted}-"}
                self._response = self._web.ask(urllib.request.Request(self.url, headers=headers))
                self._web.reading(self)
        return wanted

    def tell(self) -> int:
        """Where it is."""
        return self._position

    def close(self) -> None:
        """Called by FFmpeg, on the thread that reads."""
        self._web.reading(self, ended=True)
        if self._response is not None:
            self._response.close()
            self._response = None

    def abort(self) -> None:
        """End a read that waits, from another thread; closing alone would not."""
        response = self._response
        raw = getattr(getattr(response, "fp", None), "raw", None)
        connection = getattr(raw, "_sock", None)
        if isinstance(connection, socket.socket):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already


def _encoded(url: str) -> str:
    """As people write it -> as HTTP takes it (RFC 3986, section 2.1)."""
    parts = urlsplit(url)
    path, query = quote(parts.path, safe=UNRESERVED), quote(parts.query, safe=UNRESERVED)
    return parts._replace(path=path, query=query).geturl()


def _status_meaning(status: int) -> tuple[str, str]:
    """Sentence and reason."""
    if status in (401, 403):
        return f"user or password are not accepted (HTTP {status}); check them", "unauthorised"
    if status in (404, 410):
        return f"there is no such stream (HTTP {status}); check the path", "not_found"
    return f"the server answered with HTTP {status}; look at its log", "server_error"
