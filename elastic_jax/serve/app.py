"""The routes of the server: questions, models, health, measurements."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from elastic_jax.errors import shown
from elastic_jax.serve.answers import Job, Service
from elastic_jax.serve.fields import Refused
from elastic_jax.serve.metrics import CONTENT_TYPE, Counts, engine_gauges, metrics_text
from elastic_jax.serve.protocol import read_question
from elastic_jax.serve.replies import LAST_EVENT, Replies, event

_BODY_S = 30.0
"""Seconds in which a client must have sent its body."""
_LEFT = 499
"""Status of a reply that nobody gets any more."""


def make_app(service: Service, key: str | None) -> Starlette:
    """The application; it starts the worker and stops it at the end.

    Args:
        key: what clients must send as `Authorization: Bearer KEY`, except for `/health`; None lets everybody in.
    """
    server = _Server(service)

    def guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            sent = request.headers.get("authorization", "").removeprefix("Bearer ")
            if key is not None and not hmac.compare_digest(sent.encode(), key.encode()):
                raise Refused(401, "the key is missing or wrong; send it as Authorization: Bearer KEY.")
            return await handler(request)

        return handle

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop)

    return Starlette(
        routes=[
            Route("/v1/completions", guarded(partial(server.answer, chat=False)), methods=["POST"]),
            Route("/v1/chat/completions", guarded(partial(server.answer, chat=True)), methods=["POST"]),
            Route("/v1/models", guarded(server.models)),
            Route("/v1/models/{name:path}", guarded(server.model)),
            Route("/metrics", guarded(server.metrics)),
            Route("/health", server.health),
        ],
        exception_handlers={Refused: _refusal, HTTPException: _no_route, Exception: _failure},
        lifespan=lifespan,
    )


class _Server:
    def __init__(self, service: Service):
        self._service = service
        self._counts = Counts()
        self._reader = ThreadPoolExecutor(1, "tokenizer")  # long prompts must not stop the event loop
        self._card = {"id": service.name, "object": "model", "created": 0, "owned_by": "elastic-jax"}

    async def health(self, _: Request) -> Response:
        failure = self._service.worker.failure
        if failure is not None:
            return JSONResponse({"status": "failed", "error": shown(failure)}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._service.name:
            raise Refused(404, f"there is no model {shown(name)}.", code="model_not_found")
        return JSONResponse(self._card)

    async def metrics(self, _: Request) -> Response:
        worker = self._service.worker
        gauges = await worker.ask(engine_gauges)
        text = metrics_text(gauges, self._counts, worker.tokens, worker.tokens_per_second())
        return Response(text, media_type=CONTENT_TYPE)

    async def answer(self, request: Request, *, chat: bool) -> Response:
        try:
            response = await self._answer(request, chat=chat)
        except Refused as refused:
            self._counts.replies[refused.status] += 1
            raise
        except ClientDisconnect:
            response = PlainTextResponse(status_code=_LEFT)
        self._counts.replies[response.status_code] += 1
        return response

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        service = self._service
        body = await _read_body(request, int(service.config.body_mib * 2**20))
        read = partial(
            read_question,
            body,
            service.tokenizer,
            chat=chat,
            model=service.name,
            most_answers=service.config.most_answers,
        )
        question = await asyncio.get_running_loop().run_in_executor(self._reader, read)
        job, replies = Job(question, service), Replies(question, service.tokenizer, service.name)
        if not question.stream:
            return await _unless_client_leaves(request, self._whole(job, replies))
        try:
            await job.submit()
        except BaseException:
            job.take_back()
            raise
        return _Stream(job, self._events(job, replies))

    async def _whole(self, job: Job, replies: Replies) -> Response:
        try:
            await job.submit()
            pieces = [piece async for piece in job.pieces()]
        finally:
            job.take_back()
        usage = job.usage()
        self._counts.add(usage)
        return JSONResponse(replies.whole(pieces, usage))

    async def _events(self, job: Job, replies: Replies) -> AsyncIterator[bytes]:
        for chunk in replies.first():
            yield event(chunk)
        try:
            async for piece in job.pieces():
                yield event(replies.piece(piece))
        except Refused as refused:  # the status has been sent, so the error is an event
            yield event(refused.body())
            return
        usage = job.usage()
        self._counts.add(usage)
        for chunk in replies.last(usage):
            yield event(chunk)
        yield LAST_EVENT


class _Stream(StreamingResponse):
    """Events of one job, which is taken back when they end or the client has left."""

    def __init__(self, job: Job, events: AsyncIterator[bytes]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.take_back()


async def _read_body(request: Request, most: int) -> bytes:
    too_large = Refused(413, f"the body is larger than {most} bytes; shorten the prompt, or raise --server.body-mib.")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {_BODY_S:g} s.") from None
    return bytes(body)


async def _unless_client_leaves(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response of `work`, which is cancelled when the client closes its connection."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else PlainTextResponse(status_code=_LEFT)
    finally:
        working.cancel()
        leaving.cancel()


def _refusal(_: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
    if refused.retry_after_s is not None:
        headers["Retry-After"] = str(refused.retry_after_s)
    return JSONResponse(refused.body(), refused.status, headers)


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}.")
    return JSONResponse(refused.body(), error.status_code, error.headers)


def _failure(_: Request, error: Exception) -> Response:
    return JSONResponse(Refused(500, f"the server failed: {shown(error)}.").body(), 500)
