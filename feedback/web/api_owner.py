"""The API of the owner: items in, judgements out, a report; and whether the server is well."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException

from feedback.store import items, overview
from feedback.web import bodies, doors, exports, item_schema, replies

router = APIRouter(tags=["owner"])
MANY = 10_000
"""Items that one request may bring."""


async def sent(request: Request, _: doors.OwnerCall) -> bytes:
    """The body of a request, which is read once its sender is known to be the owner."""
    return await request.body()


@router.put(
    "/api/items",
    response_model=bodies.Put,
    responses=replies.refused(401, 403, 409, 413, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": item_schema.ITEMS},
                exports.LINES: {"schema": {"type": "string", "description": "One item a line."}},
            },
        }
    },
)
def put_items(request: Request, body: Annotated[bytes, Depends(sent)]) -> Response:
    """Puts items, each known by its id: sending them again changes nothing."""
    lines = request.headers.get("content-type", "").startswith(exports.LINES)
    found = rows(body, lines)
    with replies.refusals(), request.app.state.db.write() as c:
        return replies.Json(items.put(c, found))


def rows(body: bytes, lines: bool) -> list[Any]:
    """The objects of a body: a JSON array, or an object on each line."""
    try:
        text = body.decode("utf-8-sig")
        found = (
            [json.loads(x) for x in text.split("\n") if x.strip()] if lines else json.loads(text)
        )
    except (ValueError, RecursionError):
        kind = "a JSON object on each line" if lines else "a JSON array"
        raise HTTPException(422, f"The body must be {kind}, in UTF-8.") from None
    if not isinstance(found, list):
        raise HTTPException(422, "The body must be a JSON array of items.")
    if len(found) > MANY:
        raise HTTPException(422, f"The body has {len(found)} items; send {MANY} at most at once.")
    return [whole(x) for x in found]


def whole(row: Any) -> Any:
    """An item whose numbers are whole: to JSON 1.0 is an integer, too."""
    if not isinstance(row, dict):
        return row
    gold = row.get("gold")
    numbers = [bodies.whole(x) for x in gold] if isinstance(gold, list) else bodies.whole(gold)
    new = {"gold": numbers, "wanted": bodies.whole(row.get("wanted"))}
    return row | {k: v for k, v in new.items() if k in row}


@router.get(
    "/api/export",
    response_class=Response,
    responses={
        200: {
            "content": {exports.LINES: {"schema": {"type": "string"}}},
            "description": "An object a line.",
        },
        **replies.refused(401, 403, 422),
    },
)
def get_export(
    request: Request,
    who: doors.OwnerCall,
    kind: exports.Kind = "raw",
    question: str | None = None,
    scale: exports.Scale | None = None,
) -> Response:
    """Gives judgements, one JSON object a line, in an order that does not change."""
    with replies.refusals(), request.app.state.db.read() as c:
        return exports.download(c, kind, question, scale)


@router.get("/api/report", response_model=dict[str, Any], responses=replies.refused(401, 403))
def get_report(request: Request, who: doors.OwnerCall) -> Response:
    """Says how far the work has come."""
    with request.app.state.db.read() as c:
        return replies.Json(overview.totals(c) | {"people": overview.annotators(c)})


@router.get("/healthz", response_model=bodies.Health, responses=replies.refused())
def healthz(request: Request) -> Response:
    """Says that the server and its database answer."""
    return replies.Json({"status": "ok", "schema_version": request.app.state.db.version})
