"""The routes, and who may call them."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import psutil
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saten_runtime.errors import InvalidRun, SatenError
from saten_runtime.run.runner import Runner
from saten_runtime.serve import answers
from saten_runtime.serve.answers import CHAT, COMPLETION
from saten_runtime.serve.batches import Full
from saten_runtime.serve.connection import GONE, READ_DEADLINE_S, read_body
from saten_runtime.serve.metrics import Metrics
from saten_runtime.serve.models import Embedder, Model, Writer, make_models
from saten_runtime.serve.options import ServeOptions
from saten_runtime.serve.schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    parse_request,
)
from saten_runtime.serve.turns import Turn

__all__ = ["make_app"]

T = TypeVar("T")
Kind = TypeVar("Kind", Embedder, Writer)
Handler = Callable[[Request], Awaitable[Response]]

_HEALTH, _METRICS = "/healthz", "/metrics"
_RETRY_S = "1"


def make_app(runners: Mapping[str, Runner], options: ServeOptions, hosts: list[str]) -> Starlette:
    """The routes over bundles in memory; hosts: the names that the server may be called by, "*" for any."""
    api = _Api(runners, options)
    routes = [
        Route(_HEALTH, api.health),
        Route(_METRICS, api.metrics),
        Route("/v1/models", api.list_models),
        Route("/v1/models/{name:path}", api.show_model),
        Route("/v1/embeddings", api.embeddings, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
    ]
    middleware = [
        Middleware(_Watch, metrics=api.counts, paths={route.path for route in routes}),
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        *([Middleware(_Key, key=options.api_key)] if options.api_key else []),
    ]
    handlers: dict[Any, Any] = {
        SatenError: _refuse,
        Full: _busy,
        HTTPException: _say,
        TimeoutError: _late,
        Exception: _broken,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=api.lifespan)


class _Api:
    """The models, and what answers of them."""

    def __init__(self, runners: Mapping[str, Runner], options: ServeOptions) -> None:
        self._runners, self._options = runners, options
        self._models: dict[str, Model] = {}
        self._since = answers.created_now()
        self.counts = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._models = make_models(self._runners, self._options, self.counts.batched)
        try:
            yield
        finally:
            await asyncio.gather(*(model.close() for model in self._models.values()))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        waiting = {name: model.waiting for name, model in self._models.items()}
        text = self.counts.text(waiting, psutil.Process().memory_info().rss)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def list_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._entry(name) for name in self._models]})

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._named(name)
        return JSONResponse(self._entry(name))

    async def embeddings(self, request: Request) -> Response:
        asked = await self._asked(request, EmbeddingRequest)
        model = self._of(Embedder, asked.model)
        vectors, tokens = await self._in_time(request, model.embed(asked.input, asked.dimensions))
        self.counts.counted(model.name, "prompt", tokens)
        return JSONResponse(answers.embeddings(model.name, vectors, asked.encoding_format, tokens))

    async def completions(self, request: Request) -> Response:
        asked = await self._asked(request, CompletionRequest)
        writer = self._of(Writer, asked.model)
        return await self._speak(request, Turn(writer, asked, list(asked.prompt), asked.max_tokens, COMPLETION))

    async def chat(self, request: Request) -> Response:
        asked = await self._asked(request, ChatRequest)
        writer = self._of(Writer, asked.model)
        most = asked.max_completion_tokens or asked.max_tokens
        return await self._speak(
            request, Turn(writer, asked, [[message.plain() for message in asked.messages]], most, CHAT)
        )

    async def _speak(self, request: Request, turn: Turn) -> Response:
        if not turn.asked.stream:
            whole = await self._in_time(request, turn.whole())
            self._count(turn)
            return JSONResponse(whole)
        events = turn.events()
        first = await self._in_time(request, anext(events))  # what cannot begin has a status of its own

        async def stream() -> AsyncIterator[bytes]:
            yield first
            try:
                async for each in events:
                    yield each
            except (SatenError, TimeoutError, Full) as cause:
                yield answers.event(answers.error(_words(cause)))
            finally:
                await events.aclose()
                self._count(turn)

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    def _count(self, turn: Turn) -> None:
        self.counts.counted(turn.writer.name, "prompt", turn.read)
        self.counts.counted(turn.writer.name, "completion", turn.made)

    async def _asked(self, request: Request, kind: type[T]) -> T:
        return parse_request(kind, await read_body(request, self._options.max_body, READ_DEADLINE_S))

    def _entry(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "saten-edge"}

    def _named(self, name: str) -> Model:
        if name not in self._models:
            raise _NoModel(404, f"model {name!r:.100}: there are {', '.join(self._models)}")
        return self._models[name]

    def _of(self, kind: type[Kind], name: str) -> Kind:
        model = self._named(name)
        if not isinstance(model, kind):
            raise HTTPException(400, f"model {name!r} serves {model.route}, not {kind.route}")
        return model

    async def _in_time(self, request: Request, work: Awaitable[T]) -> T:
        """What `work` gives, which is cancelled when it takes too long or nobody waits for it any more.

        Raises:
            TimeoutError: it takes too long.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({task, gone}, timeout=self._options.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise HTTPException(GONE, "the client went away")
            raise TimeoutError
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)


class _NoModel(HTTPException):
    """A name that no bundle here has."""


async def _gone(request: Request) -> None:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(_: Request, error: Exception) -> Response:
    status = 500 if isinstance(error, InvalidRun) else 400
    return JSONResponse(answers.error(_words(error)), status)


async def _busy(_: Request, error: Exception) -> Response:
    refusal = answers.error(_words(error), "rate_limit_exceeded", "rate_limit_error")
    return JSONResponse(refusal, 429, headers={"Retry-After": _RETRY_S})


async def _late(_: Request, error: Exception) -> Response:
    return JSONResponse(answers.error(_words(error), "timeout", "server_error"), 504)


async def _broken(_: Request, error: Exception) -> Response:
    return JSONResponse(answers.error("a defect of the server; its log says more", None, "server_error"), 500)


async def _say(_: Request, error: Exception) -> Response:
    """A refusal by its number; the connection is closed, so that an unread body is never read."""
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    code = "model_not_found" if isinstance(error, _NoModel) else None
    return JSONResponse(answers.error(detail, code), status, headers={"Connection": "close"})


_SAID = {Full: "too many wait already; try again later", TimeoutError: "the answer took too long"}


def _words(error: Exception) -> str:
    return _SAID.get(type(error), str(error))


class _Key:
    """401 for a request without the key; whether the server is there, anybody may ask."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] != "http" or scope["path"] == _HEALTH or hmac.compare_digest(given, self._key):
            await self._app(scope, receive, send)
            return
        refusal = answers.error("the key is missing or wrong", "invalid_api_key")
        await JSONResponse(refusal, 401, headers={"Connection": "close"})(scope, receive, send)


class _Watch:
    """Counts answers and their seconds by route."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), GONE

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:  # it is answered farther out
            status = 500
            raise
        finally:
            route = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(route, status, time.perf_counter() - start)
