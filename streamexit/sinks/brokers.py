"""Where an MQTT broker is, how to log in there, and how its certificate is checked."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from streamexit.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How a broker proves who it is, and we to it.

    Attributes:
        ca_file: PEM; the certificate authorities to trust instead of the system's.
        cert_file: PEM; our certificate, for brokers that ask for one.
        key_file: PEM; its key, where it is not in the same file.
        key_password: Of the key.
        verify: Whether the broker's certificate and name are checked.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    key_password: str | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Reads the files anew, so that renewed certificates are used at the next connection.

        Raises:
            ConfigurationError: A file cannot be read, or is none.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"mqtt.tls.ca_file: {_fault(self.ca_file, error)}") from error
        # Python 3.13 asks of an authority what those that are made by hand, as mosquitto's manual does, lack
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.cert_file is not None:
            try:
                # a password that is asked for on a terminal would hold up the node
                password = self.key_password or ""
                context.load_cert_chain(self.cert_file, self.key_file, lambda: password)
            except (OSError, ssl.SSLError) as error:
                files = f"{self.cert_file}, {self.key_file}" if self.key_file else self.cert_file
                raise ConfigurationError(f"mqtt.tls.cert_file: {_fault(files, error)}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is and how to log in.

    Attributes:
        host: Name or address.
        port: TCP port.
        tls: None for a plain connection.
        username: Or None.
        password: Or None; never shown.
    """

    host: str
    port: int
    tls: TlsOptions | None = None
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: TlsOptions | None = None,
    ) -> BrokerAddress:
        """From mqtt://host[:port] or mqtts://host[:port]; the latter is verified unless `tls` says not to."""
        parts = urlsplit(url)
        secure = parts.scheme == "mqtts"
        default = 8883 if secure else 1883
        options = (tls or TlsOptions()) if secure else None
        return cls(
            parts.hostname or "localhost", parts.port or default, options, username, password
        )

    def __repr__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def _fault(files: object, error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{files}: holds no certificate or key that fits ({error.reason or error})"
    return f"{files}: {error.strerror if isinstance(error, OSError) else error}"
