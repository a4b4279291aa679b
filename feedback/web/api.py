"""The API of annotators: items to judge, judgements, and taking them back.

The page calls the same functions of the database. Each reply comes after what it speaks of was committed.
"""

import uuid
from typing import Any

from fastapi import APIRouter, Request, Response

from feedback.entry import access
from feedback.store import judging, leasing
from feedback.web import bodies, doors, replies

router = APIRouter(prefix="/api", tags=["annotators"])
REFUSED = replies.refused(400, 401, 403, 413, 422)


@router.post(
    "/lease",
    response_model=bodies.Lease,
    responses={
        204: {
            "description": "There is no item now, and why.",
            "headers": {
                "Why": {"schema": {"enum": ["done", "waiting", "paused", "training"]}},
            },
        },
        **replies.refused(401, 403),
    },
)
def lease(request: Request, who: doors.AnnotatorCall) -> Response:
    """Gives the item that the annotator holds, or the next one; 204 where there is none now."""
    settings = request.app.state.settings
    with request.app.state.db.write() as c:
        got = leasing.lease(c, who.annotator, settings.lease_seconds, settings)
    if isinstance(got, leasing.Waiting):
        return Response(status_code=204, headers={"Why": got.why})
    return replies.Json(got.as_json())


@router.put(
    "/judgements/{key}",
    response_model=bodies.Kept,
    status_code=201,
    responses={
        200: {"model": bodies.Kept, "description": "The same judgement was kept before."},
        202: {"model": bodies.Kept, "description": "Too late: kept as surplus."},
        **replies.refused(404, 409),
        **REFUSED,
    },
)
def judge(
    request: Request, key: uuid.UUID, body: bodies.Judgement, who: doors.AnnotatorCall
) -> Response:
    """Keeps a judgement under a key that the client made; sent again, it is kept once."""
    with replies.refusals(), request.app.state.db.write() as c:
        done = judging.judge(c, who.annotator, str(key), body.answer(), **place(request, who))
    return replies.outcome(key, done)


@router.post(
    "/judgements/{key}/undo",
    response_model=bodies.Undone,
    status_code=201,
    responses={
        200: {"model": bodies.Undone, "description": "The same undoing was kept before."},
        **replies.refused(404, 409),
        **REFUSED,
    },
)
def undo(request: Request, key: uuid.UUID, body: bodies.Undo, who: doors.AnnotatorCall) -> Response:
    """Takes back a judgement, whose item is given to the same person again."""
    with replies.refusals(), request.app.state.db.write() as c:
        done = judging.undo(c, who.annotator, str(body.key), str(key), **place(request, who))
    return replies.outcome(body.key, done)


@router.post(
    "/skip",
    response_model=bodies.Kept,
    status_code=201,
    responses={
        200: {"model": bodies.Kept, "description": "The same skip was kept before."},
        **replies.refused(404, 409),
        **REFUSED,
    },
)
def skip(request: Request, body: bodies.Skip, who: doors.AnnotatorCall) -> Response:
    """Passes over an item, with a reason; the annotator does not get it again."""
    with replies.refusals(), request.app.state.db.write() as c:
        said = (str(body.key), body.lease, body.reason, body.comment)
        done = judging.skip(c, who.annotator, *said, **place(request, who))
    return replies.outcome(body.key, done)


def place(request: Request, who: access.Session) -> dict[str, Any]:
    """The session and the settings, which the database's functions want besides what a request says."""
    return {"session": who.id, "settings": request.app.state.settings}
