"""Who is let in."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from streamexit.http.app import Guard

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


def test_every_answer_forbids_what_the_page_does_not_need() -> None:
    """Refusals, too."""
    for token in (None, TOKEN):
        answered = client(token).get("/api/node").headers
        assert "default-src 'self'" in answered["content-security-policy"]
        assert answered["x-content-type-options"] == "nosniff"
