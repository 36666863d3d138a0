"""The REST interface as an ASGI application: routes, authentication, bounds, problems.

It knows questions by their path and no bus: :mod:`tocsin.gateway.service` says who answers them. Every answer
is JSON; every failure is a problem (:mod:`tocsin.gateway.problems`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError, InvariantBrokenError, TocsinError, UnavailableError
from tocsin.gateway.problems import MEDIA_TYPE, problem_of
from tocsin.gateway.tokens import ApiToken

BASE = "/api/v1"
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Question: TypeAlias = Callable[[], Awaitable[Message]]
"""Asks whoever knows, and returns the model that becomes the answer."""


def build_app(
    questions: Mapping[str, Question],
    *,
    version: str,
    token: ApiToken | None,
    max_body_bytes: int,
    timeout_s: float,
) -> Starlette:
    """Return the application.

    Args:
        questions: by path below ``/api/v1``, such as ``/agents``; each needs the token.
        version: what /health tells.
        token: who presents it may ask; None: nobody may.
        max_body_bytes: largest body of a request.
        timeout_s: longest a request may take, its answer's way to the client included.
    """

    async def health(_: Request) -> Response:
        return _json(json.dumps({"status": "ok", "version": version}).encode())

    def route(path: str, question: Question) -> Route:
        async def endpoint(request: Request) -> Response:
            _authenticate(token, request)
            return _json((await question()).model_dump_json().encode())

        return Route(f"{BASE}{path}", endpoint, methods=["GET"], name=path)

    app = Starlette(
        routes=[
            Route(f"{BASE}/health", health, methods=["GET"]),
            *(route(path, question) for path, question in questions.items()),
        ],
        middleware=[Middleware(_Bounds, max_body_bytes=max_body_bytes, timeout_s=timeout_s)],
        exception_handlers={TocsinError: _on_error, HTTPException: _on_http_error, Exception: _on_bug},
    )
    # A path is right or it is not: no redirect to an address that the client's Host header makes up.
    app.router.redirect_slashes = False
    return app


def _authenticate(token: ApiToken | None, request: Request) -> None:
    if token is None:
        raise UnavailableError(
            "this gateway has no API token, so it serves /api/v1/health alone",
            reason="no_api_token",
            advice="write a token to a file of mode 0600, set TOCSIN_API_TOKEN_FILE to it and start again",
        )
    token.check(request.headers.get("authorization"))


class _Bounds:
    """Refuses bodies that are too large or of unknown length, and ends what takes too long."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(Request(scope))) is not None:
            response = _problem(refusal, scope["path"])
            # What follows is the body that nobody wants: the connection ends instead of reading it.
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        begun = False

        async def watched(message: AsgiMessage) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._timeout_s):
                await self._app(scope, receive, watched)
        except TimeoutError:
            if not begun:
                late = UnavailableError(f"no answer within {self._timeout_s:g} s", reason="request_timeout")
                await _problem(late, scope["path"])(scope, receive, send)

    def _refusal(self, request: Request) -> TocsinError | None:
        if "transfer-encoding" in request.headers:
            return InvalidInputError("a body needs a Content-Length", reason="length_required")
        # The server has checked that it is one number of decimal digits.
        length = int(request.headers.get("content-length", "0"))
        if length > self._max_body_bytes:
            return InvalidInputError(
                f"a body of {length} bytes, limit {self._max_body_bytes}", reason="body_too_large"
            )
        return None


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer with one of our errors."""
    if not isinstance(error, TocsinError):
        return await _on_bug(request, error)
    return _problem(error, request.url.path)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer where the router found no route, or no such method on it."""
    path = request.url.path
    if isinstance(error, HTTPException) and error.status_code == 405:
        wrong = InvalidInputError(f"{path} knows GET alone", reason="method_not_allowed")
        response = _problem(wrong, path)
        response.headers["Allow"] = "GET, HEAD"
        return response
    return _problem(InvalidInputError(f"there is nothing at {path[:200]}", reason="not_found"), path)


async def _on_bug(request: Request, _: Exception) -> Response:
    """Answer for an exception that nobody expected; the server logs it with its trace."""
    return _problem(InvariantBrokenError("internal", reason="internal"), request.url.path)


def _problem(error: TocsinError, path: str) -> Response:
    problem = problem_of(error, path[:512])
    return Response(
        json.dumps(problem.body).encode(),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=HEADERS | problem.headers,
    )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers=HEADERS)
