"""What sources may reach: which schemes, which files, which hosts."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

from streamexit.errors import SourceError
from streamexit.sources.addresses import Address

IpAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

REFUSED_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",  # link-local; most clouds answer for their metadata there
        "100.100.100.200/32",  # metadata of Alibaba Cloud
        "192.0.0.192/32",  # metadata of Oracle Cloud
        "255.255.255.255/32",
        "::/128",
        "fe80::/10",  # link-local
        "fd00:ec2::254/128",  # metadata of AWS
        "fd20:ce::254/128",  # metadata of Google Cloud
    )
)
"""Not to be reached unless allowed: nobody's cameras live there, but secrets do."""


EMBEDDING_NETWORKS = (ip_network("64:ff9b::/96"), ip_network("::/96"))
"""NAT64, and IPv4-compatible addresses of old."""


@dataclass(frozen=True, slots=True)
class Access:
    """What sources may reach.

    Attributes:
        schemes: That sources may have; None allows all.
        roots: Folders that files must lie in, links followed; None allows all.
        networks: That may be reached although they are among `REFUSED_NETWORKS`.
        hosts: That playlists and redirections may lead to, besides the source's own host.
    """

    schemes: frozenset[str] | None = None
    roots: tuple[Path, ...] | None = None
    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    def check(self, address: Address) -> None:
        """Refuse what can be refused without opening anything.

        Raises:
            SourceError: Reason "policy".
        """
        if self.schemes is not None and address.scheme not in self.schemes:
            allowed = ", ".join(sorted(self.schemes)) or "none"
            raise _refusal(
                f"{address}: {address.scheme} sources are not allowed here; "
                f"access.schemes allows {allowed}"
            )
        if address.kind in ("file", "images", "watch"):
            self.check_path(Path(address.location))
        elif address.kind == "usb":
            if not Path(address.location).resolve().is_relative_to("/dev"):
                self.check_path(Path(address.location))
        elif address.kind == "plugin" and self.schemes is None and self.roots is not None:
            raise _refusal(
                f"{address}: what {address.scheme} reads cannot be held to access.roots; "
                f"name {address.scheme} in access.schemes to allow it all the same"
            )
        elif address.kind in ("rtsp", "rtmp", "http", "hls", "tcp"):
            host = address.parts.hostname or ""
            try:
                literal = ip_address(host)
            except ValueError:
                return
            self._check_ip(literal, host)

    def check_path(self, path: Path) -> Path:
        """The real path of a file, if it may be read.

        Raises:
            SourceError: Reason "policy".
        """
        real = path.resolve()
        if self.roots is not None and not any(
            real.is_relative_to(root.resolve()) for root in self.roots
        ):
            raise _refusal(
                f"{path}: lies outside of {', '.join(map(str, self.roots)) or 'every folder'}; "
                "access.roots says where files may lie"
            )
        return real

    def open_file(self, path: Path) -> int:
        """A descriptor of a file that may be read; the caller closes it.

        What was checked is what is opened, also if somebody changes a link in between.

        Raises:
            SourceError: It may not be read, or cannot.
        """
        real = self.check_path(path)
        try:
            descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise file_error(path, error) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SourceError(
                    f"{path}: is no file; folders of pictures are images:FOLDER, pipes come over "
                    "stdin, cameras are usb:0",
                    reason="cannot_open",
                )
            opened = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if opened != real:
                self.check_path(opened)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def resolve(self, host: str, port: int) -> list[str]:
        """Addresses of a host that may be reached, IPv4 first.

        Whoever connects must connect to one of these, and not resolve the name again.

        Raises:
            SourceError: Reasons "unknown_host" and "policy".
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SourceError(
                f"{host}: the name cannot be resolved; check it, and the name server",
                reason="unknown_host",
            ) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            self._check_ip(ip_address(address.partition("%")[0]), host)
        return sorted(addresses, key=lambda address: ":" in address)

    def check_host(self, host: str, own: Iterable[str]) -> None:
        """Whether a playlist or redirection of `own` hosts may lead to `host`.

        Raises:
            SourceError: Reason "policy".
        """
        if host.lower() not in {name.lower() for name in (*own, *self.hosts)}:
            raise _refusal(
                f"{host}: is another host than the source's own ({', '.join(own)}); if it is meant, "
                "add it to access.hosts"
            )

    def _check_ip(self, address: IpAddress, host: str) -> None:
        address = _inner(address)
        for network in REFUSED_NETWORKS:
            if address in network and not any(address in allowed for allowed in self.networks):
                what = host if host == str(address) else f"{host} ({address})"
                raise _refusal(
                    f"{what}: lies in {network}, where no cameras are expected but credentials of "
                    f"machines may be; if it is meant, add it to access.networks"
                )


def _inner(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 address stands for (RFC 4291, 2.5.5; RFC 3056; RFC 6052), if it does."""
    if not isinstance(address, IPv6Address):
        return address
    if inner := address.ipv4_mapped or address.sixtofour:
        return inner
    if any(address in network for network in EMBEDDING_NETWORKS) and int(address) > 1:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


EVERYWHERE = Access()
"""But for `REFUSED_NETWORKS`."""


def file_error(path: Path, error: OSError) -> SourceError:
    """What an operating system's error means for a file."""
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{path}: no such file; check the path", reason="not_found")
    if isinstance(error, PermissionError):
        return SourceError(f"{path}: we are not permitted to read it", reason="not_permitted")
    return SourceError(f"{path}: {(error.strerror or str(error)).lower()}", reason="cannot_open")


def _refusal(message: str) -> SourceError:
    return SourceError(message, reason="policy")
