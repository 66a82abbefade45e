"""HTTP whose every connection goes to an address that was checked."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamexit.errors import SourceError
from streamexit.sources.access import Access
from streamexit.sources.addresses import Address, SourceOptions


def make_opener(address: Address, access: Access, own: set[str]) -> urllib.request.OpenerDirector:
    """What opens URLs for one source.

    Args:
        address: Of the source, with its credentials.
        access: What may be reached.
        own: Hosts that redirections may always lead to; may grow.
    """
    options = address.options
    # Nothing else: by default Python also opens files, FTP and whatever the office's proxy is for
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _PinnedHttp(access),
        _PinnedHttps(access, options),
        _CheckedRedirects(access, own),
    ]
    if options.username is not None:
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        password = options.password or ""
        passwords.add_password(None, address.location, options.username, password)
        root = address.parts._replace(path="/", query="", fragment="").geturl()
        passwords.add_password(None, root, options.username, password)
        handlers += [_Digest(passwords), _Basic(passwords)]
    opener = urllib.request.OpenerDirector()
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def _connect(access: Access, host: str, port: int, timeout: Any) -> socket.socket:
    """A connection to an address that may be reached."""
    failure: OSError = ConnectionRefusedError()
    for address in access.resolve(host, port):
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as error:
            failure = error
    raise failure


class _PinnedHttp(urllib.request.HTTPHandler):
    def __init__(self, access: Access) -> None:
        super().__init__()
        self._access = access

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        access = self._access

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = _connect(access, self.host, self.port, self.timeout)

        return self.do_open(Connection, req)


class _PinnedHttps(urllib.request.HTTPSHandler):
    def __init__(self, access: Access, options: SourceOptions) -> None:
        super().__init__()
        self._access, self._options = access, options

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        access = self._access
        # Not before it is needed: reading all certificates of a system takes longer than all else
        context = _tls(self._options.tls_verify, self._options.ca_file)

        class Connection(http.client.HTTPSConnection):
            def connect(self) -> None:
                plain = _connect(access, self.host, self.port, self.timeout)
                try:
                    self.sock = context.wrap_socket(plain, server_hostname=self.host)
                except BaseException:
                    plain.close()
                    raise

        return self.do_open(Connection, req)


class _Digest(urllib.request.HTTPDigestAuthHandler):
    """Closes the refusal before it asks again; Python leaves that to the garbage collector."""

    def http_error_401(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_401(req, fp, code, msg, headers)


class _Basic(urllib.request.HTTPBasicAuthHandler):
    """Likewise."""

    def http_error_401(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_401(req, fp, code, msg, headers)


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, access: Access, own: set[str]) -> None:
        self._access, self._own = access, own

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            _check_scheme(req.type, newurl)
            self._access.check_host(urlsplit(newurl).hostname or "", self._own)
        except SourceError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(before: str, url: str) -> None:
    """A redirection goes from HTTP to HTTP, and never from HTTPS to less."""
    scheme = urlsplit(url).scheme
    if scheme not in ("http", "https") or (before == "https" and scheme == "http"):
        raise SourceError(
            f"redirected from {before} to {scheme}, which is not followed", reason="policy"
        )


def _tls(verify: bool, ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SourceError(
            f"ca_file {ca_file}: cannot be read as PEM certificates", reason="bad_source"
        ) from error
    context.verify_flags &= (
        ~ssl.VERIFY_X509_STRICT
    )  # as of brokers: authorities made by hand are fine
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
