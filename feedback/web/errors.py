"""Replies to what is refused: one sentence, as JSON or as a page, which quotes nothing that was sent."""

import http
from collections.abc import Sequence

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from feedback.web import views
from feedback.web.faults import LOG, told

SAID = {
    404: "There is no such page.",
    405: "This cannot be done here.",
    500: "Something failed here, and it is in the log; nothing that was saved is lost. Try again.",
}
"""Sentences for statuses that come without one of our own."""
AWAY = "The database does not answer, and nothing was saved: try again."
PHRASES = {x.value: x.phrase for x in http.HTTPStatus}


def answer(scope: Scope, refusal: HTTPException) -> Response:
    """The reply for a refusal: JSON for the API and for scripts, a page for browsers."""
    status, said = refusal.status_code, str(refusal.detail)
    if said == PHRASES.get(status, ""):
        said = SAID.get(status, said)
    said = said.rstrip(".") + "."
    if wants_json(scope):
        return JSONResponse({"error": said}, status, refusal.headers)
    heading = PHRASES.get(status, "Refused")
    typed = scope.get("state", {}).get("typed", [])
    page = {"heading": heading, "message": said, "typed": typed}
    return views.render(Request(scope), "error.html", status, refusal.headers, **page)


def wants_json(scope: Scope) -> bool:
    """True where a request wants data rather than a page."""
    api = scope["path"].startswith(("/api/", "/healthz", "/openapi"))
    return api or "application/json" in Headers(scope=scope).get("accept", "")


async def refuse(request: Request, refusal: Exception) -> Response:
    """Handler of HTTPException."""
    assert isinstance(refusal, HTTPException)
    return answer(request.scope, refusal)


async def refuse_fields(request: Request, refusal: Exception) -> Response:
    """Handler of values that do not fit: names each field and what is wrong, never the value."""
    assert isinstance(refusal, RequestValidationError)
    return answer(request.scope, HTTPException(422, sentence(refusal.errors())))


async def refuse_database(request: Request, failure: Exception) -> Response:
    """Handler of a database that does not answer."""
    LOG.error("%s", told(failure))
    return answer(request.scope, HTTPException(503, AWAY, {"Retry-After": "2"}))


def sentence(found: Sequence) -> str:
    """One sentence for the errors that pydantic found, at most eight of them."""
    said = []
    for one in found[:8]:
        field = ".".join(str(x) for x in one["loc"][1:] if not isinstance(x, int) or x < 10_000)
        about = one["msg"].removeprefix("Value error, ").rstrip(".")
        said.append(f"{field or one['loc'][0]}: {about}")
    return "; ".join(said) + "."
