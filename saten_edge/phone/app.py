"""The routes: a fixed table. Only the page itself is given without the token of the run.

Nothing is looked up by a path: the page's files are read once at the start, bundle files are named
by the sha256 that the manifest gives them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saten_edge.phone import ort
from saten_edge.phone.connection import READ_DEADLINE_S, Allowance
from saten_edge.phone.received import Mismatch, Received
from saten_edge.phone.schema import MOST_BODY_BYTES, Answer, Bench, End, Post, Prices, parse_post
from saten_runtime.errors import SatenError
from saten_runtime.serve.connection import read_body

__all__ = ["HEADERS", "PAGE", "TOKEN_HEADER", "Desk", "Served", "make_app"]

TOKEN_HEADER = "X-Saten-Token"  # noqa: S105 - the header's name

PAGE = {  # route -> (file in static/, media type)
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/manifest.webmanifest": ("manifest.webmanifest", "application/manifest+json"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/icon-180.png": ("icon-180.png", "image/png"),
    "/icon-512.png": ("icon-512.png", "image/png"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in (
            *("app", "chart", "device", "download", "engine", "measure"),
            *("offline", "prices", "server", "sha256", "tensors", "worker"),
        )
    },
}
_ORT_TYPES = {".mjs": "text/javascript; charset=utf-8", ".wasm": "application/wasm"}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Together they make the page cross-origin isolated, where the browser gives threads and a finer clock.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FOREVER = "public, max-age=31536000, immutable"
_STATIC = Path(__file__).parent / "static"
_BYTES = "application/octet-stream"
_CHUNK_BYTES = 1 << 18

Handler = Callable[[Request], Awaitable[Response]]


class Served(Protocol):
    """What a page is given to do."""

    @property
    def threads(self) -> int:
        """The most that it is asked to run with."""

    def files(self) -> dict[str, Path | bytes]:
        """Everything the page may download, by sha256: where it lies, or its content."""


class Desk(Protocol):
    """Where the routes find the run that is open, and say that it ended."""

    @property
    def run(self) -> Received:
        """The run that is open."""

    def fetched(self, user_agent: str) -> None:
        """A page has asked for the job."""

    def ended(self) -> None:
        """The run was closed by its page."""


def make_app(job: Served, desk: Desk, hosts: list[str], allowance: Allowance | None = None) -> Starlette:
    """The server's routes. hosts: names it may be called by; allowance: the usual one if left out.

    Raises:
        RuntimeMismatch: the files of onnxruntime-web are missing.
    """
    api = _Api(job, desk)
    routes = [
        *(Route(path, _page_file(*file)) for path, file in PAGE.items()),
        *(Route(f"/ort/{ort.VERSION}/{name}", _ort_file(name, content)) for name, content in ort.read_files().items()),
        Route("/api/job", api.job),
        Route("/api/files/{sha256}", api.file),
        Route("/api/answer", api.receiver(Answer), methods=["POST"]),
        Route("/api/bench", api.receiver(Bench), methods=["POST"]),
        Route("/api/prices", api.receiver(Prices), methods=["POST"]),
        Route("/api/end", api.receiver(End), methods=["POST"]),
    ]
    middleware = [
        Middleware(_Headers),
        Middleware(_Rate, allowance=allowance or Allowance()),
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
    ]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _say})


class _Api:
    """What needs the token."""

    def __init__(self, job: Served, desk: Desk) -> None:
        self._desk = desk
        self._files = job.files()

    async def job(self, request: Request) -> Response:
        run = self._admitted(request)
        self._desk.fetched(_user_agent(request))
        return JSONResponse(run.to_json())

    async def file(self, request: Request) -> Response:
        self._admitted(request)
        if (found := self._files.get(request.path_params["sha256"])) is None:
            raise HTTPException(404, "no such file in this run")
        if isinstance(found, bytes):
            return Response(found, media_type=_BYTES)
        headers = {"Content-Length": str(found.stat().st_size)}
        return StreamingResponse(_chunks(found), media_type=_BYTES, headers=headers)

    def receiver(self, kind: type[Post]) -> Handler:
        """A handler for posts of one kind: who, what type, how much, then the content."""

        async def receive(request: Request) -> Response:
            run = self._admitted(request)
            body = await read_body(request, MOST_BODY_BYTES, READ_DEADLINE_S)
            # The body took time: the run may be over by now.
            self._admitted(request)
            try:
                taken = run.receive(parse_post(kind, body), body, _user_agent(request))
            except SatenError as error:
                run.refuse(str(error), body, _user_agent(request))
                raise HTTPException(409 if isinstance(error, Mismatch) else 400, str(error)) from None
            if not run.is_open:
                self._desk.ended()
            return JSONResponse(taken)

        return receive

    def _admitted(self, request: Request) -> Received:
        run = self._desk.run
        if not run.admits(request.headers.get(TOKEN_HEADER, "")):
            raise HTTPException(403, "this link is not valid any more; scan the code the computer shows now")
        return run


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(_CHUNK_BYTES):
            yield chunk


def _page_file(name: str, media_type: str) -> Handler:
    content = (_STATIC / name).read_bytes()

    async def send(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return send


def _ort_file(name: str, content: bytes) -> Handler:
    media_type = _ORT_TYPES[Path(name).suffix]

    async def send(_: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": _FOREVER})

    return send


async def _say(_: Request, error: Exception) -> Response:
    """A refusal as JSON; the connection is closed, so that an unread body is never read."""
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    return JSONResponse({"error": detail}, status, headers={"Connection": "close"})


def _user_agent(request: Request) -> str:
    return request.headers.get("User-Agent", "")[:500]


class _Headers:
    """`HEADERS` on every response that has none of the name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in HEADERS.items() if n.lower().encode() not in present),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Rate:
    """429 for an address that asks too often."""

    def __init__(self, app: ASGIApp, allowance: Allowance) -> None:
        self._app = app
        self._allowance = allowance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = (scope.get("client") or ("",))[0]
        if self._allowance.take(address):
            await self._app(scope, receive, send)
            return
        refusal: Any = JSONResponse({"error": "too many requests"}, 429, headers={"Connection": "close"})
        await refusal(scope, receive, send)
