"""Who is let in."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.datastructures import URL
from starlette.requests import HTTPConnection

from streamexit.control.dispatch import Dispatcher
from streamexit.health import Health
from streamexit.http.app import Guard, make_app
from streamexit.http.connections import PatientProtocol
from streamexit.http.history import History
from streamexit.operations import NodeOperations

TOKEN = "correct horse battery staple"


def client(token: str | None, *, host: str = "127.0.0.1:8420") -> TestClient:
    """Of an application that answers everything."""
    app = FastAPI()
    app.middleware("http")(Guard(token))

    @app.get("/{path:path}")
    async def anything(path: str) -> str:
        return "in"

    return TestClient(app, base_url=f"http://{host}")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"bearer {TOKEN}"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://elsewhere"}, 200),
    ],
)
def test_a_token_is_asked_for(headers: dict[str, str], status: int) -> None:
    """From wherever; who has it may come from other pages, too."""
    response = client(TOKEN, host="node.example").get("/api/node", headers=headers)
    assert response.status_code == status
    assert TOKEN not in response.text


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/", "/app.js", "/style.css"])
def test_health_and_the_page_itself_are_open(path: str) -> None:
    """They hold nothing."""
    assert client(TOKEN).get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/metrics", "/api/streams", "/api/openapi.json", "/../app.py", "/x/app.js"]
)
def test_all_else_is_not(path: str) -> None:
    """Whatever it is called."""
    assert client(TOKEN).get(path).status_code == 401


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8420", None, 200),
        ("localhost:8420", None, 200),
        ("[::1]:8420", None, 200),
        ("localhost", None, 200),
        ("[::1]", None, 200),
        ("127.0.0.1:8420", "http://127.0.0.1:8420", 200),
        ("127.0.0.1:8420", "http://127.0.0.1:9999", 403),
        ("127.0.0.1:8420", "null", 403),
        ("rebound.example:8420", None, 403),
        ("127.0.0.1.example", None, 403),
    ],
)
def test_without_a_token_only_this_machine(host: str, origin: str | None, status: int) -> None:
    """Not by a name that somebody else controls (DNS rebinding), nor from another page (CSRF)."""
    headers = {"Origin": origin} if origin else {}
    assert client(None, host=host).get("/api/node", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)],
)
def test_what_another_page_embeds_is_refused(site: str, status: int) -> None:
    """A picture in it would be asked for without an origin."""
    headers = {"Sec-Fetch-Site": site}
    assert client(None).get("/api/node", headers=headers).status_code == status


def test_every_answer_forbids_what_the_page_does_not_need() -> None:
    """Refusals, too."""
    for token in (None, TOKEN):
        answered = client(token).get("/api/node").headers
        assert "default-src 'self'" in answered["content-security-policy"]
        assert answered["x-content-type-options"] == "nosniff"
        assert answered["cross-origin-resource-policy"] == "same-origin"


NO_OPERATIONS = cast(NodeOperations, SimpleNamespace(roster=None, reporter=None))
"""Of a node that is asked for nothing but what needs none."""


def node_app(token: str | None, health: Health) -> FastAPI:
    """The application of a node."""
    dispatcher = Dispatcher("node", NO_OPERATIONS)
    return make_app(NO_OPERATIONS, dispatcher, health, History(), token=token)


@contextmanager
def served(app: FastAPI) -> Iterator[tuple[str, int]]:
    """The address that an application is served at."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=PatientProtocol, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def status_of(address: tuple[str, int], request: str, host: str) -> int:
    """What a client is told that writes what it likes."""
    head = f"{request} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head.encode())
        with connection.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def url_of_old(request: HTTPConnection) -> URL:
    """As Starlette made it before it mistrusted the Host header."""
    return URL(f"http://{request.headers['host']}{request.scope['path']}")


@pytest.mark.parametrize("old", [False, True])
def test_no_host_opens_what_the_token_closes(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """Whatever a URL that is made of it would be; also of the application that a node really serves."""
    if old:
        monkeypatch.setattr(HTTPConnection, "url", property(url_of_old))
    with served(node_app(TOKEN, Health())) as address:
        for host in ("127.0.0.1", "127.0.0.1/livez?x", "a/app.js?", "x/readyz#"):
            for request in ("GET /api/node", "GET /metrics", "POST /api/commands/set_budget"):
                assert status_of(address, request, host) in (400, 401), (host, request)
        assert status_of(address, "GET /livez", "127.0.0.1") == 200
        assert status_of(address, "GET /app.js", "127.0.0.1") == 200


@pytest.mark.parametrize(
    ("token", "said"),
    [(TOKEN, "no results go out"), (None, "no results go out: mqtt://broker.internal is away")],
)
def test_who_has_no_token_is_not_told_where_the_broker_is(token: str | None, said: str) -> None:
    """Readiness needs none."""
    health = Health()
    health.not_ready = "no results go out: mqtt://broker.internal is away"
    app = TestClient(node_app(token, health), base_url="http://127.0.0.1:8420")
    answer = app.get("/readyz")
    assert (answer.status_code, answer.text) == (503, f"{said}\n")
