"""What surrounds every request: headers, bounds on bodies, rates, and a log without texts or tokens.

A plain ASGI middleware, so that replies and bodies pass through it in pieces. Nothing that a person or a
model wrote is logged: a line has who, the method, the path with its secrets masked, the status, and the time.
"""

import hashlib
import re
import time
import urllib.parse

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feedback import errors, rates
from feedback.faults import LOG, told

BODY = 4 * 2**20
"""Bytes that a request may carry."""
BODIES = {"/api/items": 64 * 2**20}
"""Paths whose requests may carry more; they check access before they read."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""Headers of every reply."""
REFUSED = {400, 401, 403, 404, 413, 429}
"""Statuses whose lines in the log name the address."""


def masked(path: str) -> str:
    """A path as the log may have it: on one line, without tokens, and at most 200 characters long."""
    path = re.sub(r"^/+([ip])/+[^/]+", r"/\1/***", path, flags=re.IGNORECASE)
    path = re.sub(r"[\w-]{40,}", "***", path)
    return urllib.parse.quote(path, safe="/*@:+,;=~")[:200]


def caller(scope: Scope) -> str:
    """Whose rate a request counts for: the secret that it carries (hashed), or else the address."""
    headers = Headers(scope=scope)
    secret = headers.get("authorization") or headers.get("cookie")
    if secret:
        return hashlib.sha256(secret.encode()).hexdigest()
    return rates.address(scope)


class Protection:
    """Wraps an application; see this file's docstring."""

    def __init__(
        self,
        app: ASGIApp,
        requests: rates.Rate | None = None,
    ):
        self.app = app
        self.requests = requests or rates.Rate(per_second=200, burst=1000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status = time.perf_counter(), 0
        scope.setdefault("state", {})

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            await self._serve(scope, receive, guarded)
        except HTTPException as refusal:  # of a body that the application never read to its end
            if not status:
                await errors.answer(scope, refusal)(scope, receive, guarded)
        except Exception as failure:  # a reply cut short ends with its connection
            LOG.error("%s", told(failure))
            if not status:
                await errors.answer(scope, HTTPException(500))(scope, receive, guarded)
        finally:
            who = scope["state"].get("who", "-")
            ms = 1000 * (time.perf_counter() - begun)
            at = f" from {rates.address(scope)}" if status in REFUSED else ""
            line = (who, scope["method"], masked(scope["path"]), status or "broken", ms, at)
            LOG.info("%s %s %s %s %.0f ms%s", *line)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if wait := self.requests.take(caller(scope)):
            raise rates.too_many(wait)
        await self.app(scope, bounded(scope, receive), send)


def bounded(scope: Scope, receive: Receive) -> Receive:
    """`receive` that raises HTTPException(413) once a body is larger than its path allows.

    Raises it at once where the header says so.
    """
    limit, read = BODIES.get(scope["path"], BODY), 0
    said = Headers(scope=scope).get("content-length", "")
    too_large = HTTPException(
        413, f"The request is larger than {limit} bytes.", {"Connection": "close"}
    )
    if said.isdecimal() and int(said) > limit:
        raise too_large

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise too_large
        return message

    return counted
