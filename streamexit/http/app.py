"""The routes: commands, health, metrics, pictures, and the web page."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from streamexit.control.dispatch import LARGEST, Dispatcher
from streamexit.errors import StreamExitError
from streamexit.health import Health
from streamexit.http.history import History
from streamexit.http.metrics import CONTENT_TYPE, NodeCollector
from streamexit.operations import NodeOperations
from streamexit.pictures import draw, latest_look
from streamexit.wire.commands import VERBS
from streamexit.wire.messages import Response as Answer
from streamexit.wire.messages import timestamp

PAGE = Path(__file__).with_name("page")
OPEN = ("/livez", "/readyz")
"""Without a token: they say nothing but whether the node is well."""

MOST_PREVIEWS = 8
PREVIEW_WIDTH = 800

STATUS = {
    "bad_request": 400,
    "unknown_verb": 404,
    "unknown_stream": 404,
    "not_allowed": 403,
    "conflict": 409,
    "invalid": 422,
    "busy": 429,
    "unavailable": 503,
    "internal": 500,
}
"""Code of a fault -> HTTP status."""

FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": Answer} for status in sorted({*STATUS.values(), 401, 415})
}
"""For the OpenAPI document."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; style-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Next = Callable[[Request], Awaitable[Response]]


def make_app(
    operations: NodeOperations,
    dispatcher: Dispatcher,
    health: Health,
    history: History,
    *,
    token: str | None,
) -> FastAPI:
    """The application of one node.

    Args:
        operations: What may be asked of it.
        dispatcher: Carries commands out.
        health: Looked at by somebody else.
        history: Likewise.
        token: That requests have to show; None serves whoever reaches it, which is this machine.
    """
    app = FastAPI(
        title="streamexit",
        version=version("streamexit"),
        description="Commands, health, metrics and pictures of one node.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.middleware("http")(Guard(token))
    _add_health(app, health, operations, brief=token is not None)
    _add_facts(app, operations, dispatcher, health, history)
    _add_pictures(app, operations, dispatcher)
    _add_commands(app, dispatcher)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


class Guard:
    """Who may ask, and what every answer carries."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def __call__(self, request: Request, call_next: Next) -> Response:
        """Answer, or refuse to."""
        refusal = self._refusal(request)
        response = refusal or await call_next(request)
        response.headers.update(HEADERS)
        return response

    def _refusal(self, request: Request) -> Response | None:
        if _path(request) in OPEN or self._is_page(request):
            return None
        if self._token is None:
            return None if _is_local(request) else _fault("not_allowed", LOCAL_ONLY)
        given = request.headers.get("authorization", "")
        if hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return None
        fault = _fault("not_allowed", "show the token of this node: Authorization: Bearer ...", 401)
        fault.headers["WWW-Authenticate"] = "Bearer"
        return fault

    def _is_page(self, request: Request) -> bool:
        """The page itself holds nothing; what it shows is asked for with the token."""
        path = _path(request).removeprefix("/") or "index.html"
        return request.method == "GET" and "/" not in path and (PAGE / path).is_file()


def _path(request: Request) -> str:
    """What is routed by. `request.url` is made of the Host header, too, which the client writes."""
    return str(request.scope["path"])


LOCAL_ONLY = (
    "without a token this node answers this machine only, and no other web page; set http.token"
)


def _is_local(request: Request) -> bool:
    """Not led here by a name that somebody else controls, nor by another page in the same browser."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    try:
        local = urlsplit(f"//{host}").hostname in ("127.0.0.1", "::1", "localhost")
    except ValueError:
        return False
    by_another_page = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    own_origin = origin is None or origin.partition("://")[2] == host
    return local and own_origin and not by_another_page


def _fault(code: str, message: str, status: int | None = None) -> JSONResponse:
    body = {"status": "error", "error": {"code": code, "message": message}, "data": None}
    return JSONResponse(body, status or STATUS[code])


def _add_health(app: FastAPI, health: Health, operations: NodeOperations, *, brief: bool) -> None:
    """`brief` keeps from whoever has no token where the broker is."""
    collector = NodeCollector(operations.roster, operations.reporter)

    @app.get("/livez", response_class=PlainTextResponse, summary="The process runs.")
    async def livez() -> str:
        return "ok\n"

    @app.get(
        "/readyz",
        response_class=PlainTextResponse,
        summary="Frames that come in are answered, and results go out.",
        responses={503: {"description": "They are not, and why."}},
    )
    async def readyz() -> PlainTextResponse:
        why_not = health.not_ready.partition(":")[0] if brief else health.not_ready
        return PlainTextResponse(f"{why_not or 'ok'}\n", 503 if why_not else 200)

    @app.get(
        "/metrics",
        summary="For Prometheus.",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE: {}}}},
    )
    async def metrics() -> Response:
        return Response(collector.text(), media_type=CONTENT_TYPE)


def _add_facts(
    app: FastAPI,
    operations: NodeOperations,
    dispatcher: Dispatcher,
    health: Health,
    history: History,
) -> None:
    @app.get("/api/node", summary="What this node is, and how it is.")
    async def node() -> JSONResponse:
        answer = await dispatcher.answer("info", {}, cause="HTTP")
        log = [
            {"at": timestamp(at), "stream": stream, "text": text}
            for at, stream, text in reversed(operations.reporter.log)
        ]
        ready = {"ready": not health.not_ready, "why_not_ready": health.not_ready}
        return JSONResponse({**answer.data, **ready, "log": log})

    @app.get("/api/streams", summary="All streams with status and budget.")
    async def streams() -> JSONResponse:
        answer = await dispatcher.answer("list_streams", {}, cause="HTTP")
        return JSONResponse(answer.data)

    @app.get("/api/streams/{stream}/history", summary="Half an hour of a stream, in columns.")
    async def past(stream: str, since: float = 0.0) -> JSONResponse:
        return JSONResponse(history.of(stream, since=since))


def _add_pictures(app: FastAPI, operations: NodeOperations, dispatcher: Dispatcher) -> None:
    @app.get(
        "/api/streams/{stream}/snapshot.jpg",
        summary="The latest frame with its answer drawn in.",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **FAULTS},
    )
    async def snapshot(stream: str) -> Response:
        answer = await dispatcher.answer("snapshot", {"stream": stream}, cause="HTTP")
        if answer.error:
            return _answered(answer)
        return Response(base64.b64decode(answer.data["jpeg"]), media_type="image/jpeg")

    previews = asyncio.Semaphore(MOST_PREVIEWS)

    @app.get(
        "/api/streams/{stream}/preview.mjpeg",
        summary="The stream as motion JPEG, up to five pictures a second.",
        response_class=Response,
        responses={200: {"content": {"multipart/x-mixed-replace": {}}}, **FAULTS},
    )
    async def preview(stream: str) -> Response:
        if stream not in operations.roster.streams:
            return _fault("unknown_stream", f"stream {stream!r} is unknown")
        if previews.locked():
            return _fault("busy", f"{MOST_PREVIEWS} previews are open already")
        pictures = _motion_jpeg(operations, stream, previews)
        return StreamingResponse(pictures, media_type="multipart/x-mixed-replace; boundary=picture")


async def _motion_jpeg(
    operations: NodeOperations, stream_id: str, previews: asyncio.Semaphore
) -> AsyncIterator[bytes]:
    """Until the client goes, or no pictures come any more."""
    async with previews:
        look = None
        while stream := operations.roster.streams.get(stream_id):
            try:
                look = await latest_look(stream, after=look)
            except StreamExitError:
                if look is not None and stream.state.state == "online":
                    continue  # it is slow
                return
            jpeg, _ = await asyncio.to_thread(draw, stream, look, PREVIEW_WIDTH)
            head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            yield head.encode() + jpeg + b"\r\n"


def _add_commands(app: FastAPI, dispatcher: Dispatcher) -> None:
    def add(verb: str) -> None:
        model = VERBS[verb]

        async def command(request: Request) -> JSONResponse:
            if not _is_json(request):
                return _fault("bad_request", "send JSON, with Content-Type: application/json", 415)
            body = await _body(request)
            return _answered(await dispatcher.answer(verb, body, cause="HTTP"))

        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        app.post(
            f"/api/commands/{verb}",
            summary=(model.__doc__ or "").strip(),
            operation_id=verb,
            response_model=Answer,
            responses=FAULTS,
            openapi_extra={
                "requestBody": {
                    "content": {"application/json": {"schema": schema}},
                    "required": True,
                }
            },
        )(command)

    for verb in VERBS:
        add(verb)

    @app.post("/api/commands/{verb}", include_in_schema=False)
    async def unknown(verb: str, request: Request) -> JSONResponse:
        return _answered(await dispatcher.answer(verb, await _body(request), cause="HTTP"))


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json"


async def _body(request: Request) -> bytes:
    """Up to one byte more than is allowed, which the dispatcher then says."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            return body[: LARGEST + 1]
    return body


def _answered(answer: Answer) -> JSONResponse:
    status = STATUS[answer.error.code] if answer.error else 200
    return JSONResponse(json.loads(answer.encode()), status)
