"""Requests with a JSON body that are sent again where a server was away, late or too busy."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NamedTuple

BUSY = (408, 429, 500, 502, 503, 504)
"""Statuses of refusals that pass."""


class Reply(NamedTuple):
    """A server's reply to a request that it took."""

    status: int
    headers: Any
    body: bytes


def ask(
    method: str, url: str, token: str, body: Any, timeout: float, pauses: Sequence[float]
) -> Reply:
    """The reply to a request, with a bearer token unless that is empty; sent again after each of `pauses`.

    Raises ConnectionError where the server stays away, and ValueError, with its sentence, for a refusal.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    why = ""
    for pause in (0.0, *pauses):
        time.sleep(pause)
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return Reply(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            said = _sentence(error)
            if error.code not in BUSY:
                raise ValueError(f"{url} refuses ({error.code}): {said}") from None
            why = f"{error.code} {said}"
        except (OSError, http.client.HTTPException) as error:
            why = str(error)
    raise ConnectionError(f"{url} does not answer: {why}")


def _sentence(error: urllib.error.HTTPError) -> str:
    """The server's own word on a refusal; empty where it does not end it."""
    try:
        with error:
            said = error.read()
    except (OSError, http.client.HTTPException):
        return ""
    try:
        return str(json.loads(said)["error"])
    except (ValueError, KeyError, TypeError):
        return said[:200].decode(errors="replace")
