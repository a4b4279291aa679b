"""Replies of the API, and what the database's functions refuse as statuses."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from feedback.store import items
from feedback.store.outcomes import Outcome
from feedback.web import bodies

SAID = {
    400: "A body that is not JSON in UTF-8.",
    401: "No session, or a token that opens nothing.",
    403: "Shut out, or a request without the word of its session.",
    404: "Unknown, or another person's.",
    409: "In conflict with what is known.",
    413: "Too large.",
    422: "Not of the shape described here.",
    429: "Too many requests; `Retry-After` says for how many seconds to wait.",
    503: "The database does not answer; `Retry-After` says for how many seconds to wait.",
}


STATUSES = {LookupError: 404, ValueError: 422, items.Known: 409}
"""Statuses of what the database's functions refuse."""


class Json(JSONResponse):
    """JSON in ASCII, which can hold every text, lone surrogates too."""

    def render(self, content: Any) -> bytes:
        """The bytes of `content`."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of refusals for OpenAPI."""
    wait = {"Retry-After": {"schema": {"type": "integer"}}}
    return {
        status: {"model": bodies.Refusal, "description": SAID[status]}
        | ({"headers": wait} if status in (429, 503) else {})
        for status in (*statuses, 429, 503)
    }


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns what the database's functions refuse into replies: 404 unknown, 409 in conflict, 422 a misfit.

    An error of a kind of its own (KeyError, UnicodeError) is a fault of the program, and passes.
    """
    try:
        yield
    except (LookupError, ValueError) as e:
        if type(e) not in STATUSES:
            raise
        raise HTTPException(STATUSES[type(e)], sentence(e)) from None


def sentence(refusal: Exception) -> str:
    """An exception's message as a sentence."""
    said = str(refusal).strip().rstrip(".")
    return said[:1].upper() + said[1:] + "."


def outcome(key: object, done: Outcome) -> Json:
    """The reply to a judgement, a skip or an undoing; raises HTTPException(409) for a conflict."""
    if done.status == 409:
        raise HTTPException(409, done.why)
    said = {"key": str(key), "kind": done.kind, "why": done.why, "right": done.right}
    said |= {"gold": done.gold, "reason": done.reason, "training": done.training}
    if done.kind == "undo":
        said["lease"] = done.lease and done.lease.as_json()
    return Json(said, done.status)
