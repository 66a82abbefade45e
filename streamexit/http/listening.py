"""The socket of a node's HTTP server; without the server's libraries."""

from __future__ import annotations

import socket

from streamexit.errors import OperationError


def listen(host: str, port: int) -> socket.socket:
    """Take a port; 0 takes a free one.

    Raises:
        OperationError: It is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=100)
    except OSError as error:
        raise OperationError(
            f"http: cannot listen at {host} port {port}: {error.strerror}; is this node running already? Else "
            "choose another port (http.port)"
        ) from error
