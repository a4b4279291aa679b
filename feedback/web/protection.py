"""Around every request: headers, bounds on bodies, rates, and a log without texts or tokens.

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

from feedback.web import errors, rates
from feedback.web.faults import LOG, told

BODY = 4 * 2**20
"""Bytes that a request may carry."""
BODIES = {"/api/items": 64 * 2**20}
"""Paths whose requests may carry more; they check access before they read."""
DRAINED = 64 * 2**20
"""Bytes of a body that are read at most after the reply."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
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
    """The caller whose rate a request counts for: the hash of its secret, else the address."""
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
        begun, status, body = time.perf_counter(), 0, Body(scope, receive)
        scope.setdefault("state", {})

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                asset = scope["path"].startswith("/static/") and status in (200, 304)
                headers["Cache-Control"] = "max-age=86400" if asset else "no-store"
            elif body.left and not message.get("more_body"):
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body"}
            await send(message)

        try:
            if wait := self.requests.take(caller(scope)):
                raise rates.too_many(wait)
            body.check(body.said)
            await self.app(scope, body.receive, guarded)
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


class Body:
    """A request's body: an application gets it up to its path's bound; what it leaves is thrown away."""

    def __init__(self, scope: Scope, receive: Receive):
        headers = Headers(scope=scope)
        said = headers.get("content-length", "0")
        self.said = int(said) if said.isdecimal() else 0
        self.limit = BODIES.get(scope["path"], BODY)
        self.read, self.left = 0, bool(self.said) or "transfer-encoding" in headers
        self._receive = receive

    async def receive(self) -> Message:
        """The next piece; HTTPException(413) once there is more than the bound."""
        message = await self._next()
        self.check(self.read)
        return message

    def check(self, size: int) -> None:
        """Raises HTTPException(413) for a size in bytes beyond the bound."""
        if size > self.limit:
            close = {"Connection": "close"}
            raise HTTPException(413, f"The request is larger than {self.limit} bytes.", close)

    async def drain(self) -> None:
        """Throws away the rest, up to a bound: who is still sending it would not see the reply."""
        while self.left and self.read < DRAINED:
            await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self.read += len(message.get("body", b""))
        self.left = message["type"] == "http.request" and message.get("more_body", False)
        return message
