"""The owner's pages, which show: progress, people, items, judgements as they come, links, guidelines."""

from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Path, Query, Request, Response
from starlette.exceptions import HTTPException

from feedback.entry import access
from feedback.formats import export, omissions
from feedback.store import database, events, guidelines, items, overview, schema
from feedback.web import doors, exports, pictures, replies, views

router = APIRouter(prefix="/owner", include_in_schema=False)
State = Literal["", "open", "closed", "parked"]
Number = Annotated[int, Path(ge=0, le=2**31 - 1)]
After = Annotated[int, Query(ge=0, le=2**31 - 1)]
PAGE = 100
"""Items on a page of the list."""
TESTS = {
    "position": "chooses by place",
    "consensus": "disagrees with the others",
    "fatigue": "agrees less in the second half",
    "length": "chooses the longer one",
    "gold": "misses hidden gold",
    "self": "contradicts earlier answers",
}
"""What it says of a person to be flagged by each test."""


def page(request: Request, who: access.Session, name: str, /, **context: Any) -> Response:
    """A page of the owner's, with the word for its forms."""
    return views.render(request, name, csrf=who.csrf, ago=ago, **context)


def ago(then: float | None, now: float) -> str:
    """A time as it is said: "3 minutes ago"; "never" for None."""
    if then is None:
        return "never"
    seconds = max(0, now - then)
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size or unit == "second":
            n = int(seconds // size)
            return f"{n} {unit}{'s' * (n != 1)} ago"
    raise AssertionError


@router.get("")
def home(request: Request, who: doors.Owner) -> Response:
    """Progress, and what each person did."""
    with request.app.state.db.read() as c:
        context = {
            "totals": overview.totals(c),
            "people": overview.annotators(c),
            "paused": bool(database.state(c).get("paused")),
            "kinds": exports.KINDS,
            "left_out": omissions.told(c),
            "questions": overview.questions(c),
            "now": database.now(c),
        }
    return page(request, who, "owner_home.html", **context)


@router.get("/agreement")
def agreement(request: Request, who: doors.Owner) -> Response:
    """Agreement, each person's reliability, and who is better, of the pairs that were judged so far."""
    from rlhf_jax.people import summary  # NumPy and SciPy, which take a second

    with request.app.state.db.read() as c:
        rows = export.raw(c)
    parts = [(x, summary.summary(rows, x)) for x in summary.questions(rows) or [""]]
    return page(request, who, "owner_agreement.html", parts=parts, tests=TESTS)


@router.get("/judgements")
def judgements(request: Request, who: doors.Owner) -> Response:
    """Judgements as they come: the page loads itself again every few seconds."""
    with request.app.state.db.read() as c:
        context = {"rows": overview.latest(c), "now": database.now(c)}
    return page(request, who, "owner_judgements.html", **context)


@router.get("/items")
def list_items(request: Request, who: doors.Owner, state: State = "", after: After = 0) -> Response:
    """The items, a hundred on a page."""
    with request.app.state.db.read() as c:
        found = overview.items(c, state, after, PAGE + 1)
    more = found[PAGE - 1].id if len(found) > PAGE else None
    context = {"items": found[:PAGE], "state": state, "more": more}
    return page(request, who, "owner_items.html", **context)


@router.get("/items/{item}")
def one_item(request: Request, who: doors.Owner, item: Number) -> Response:
    """An item with its texts and all that was said of it."""
    with request.app.state.db.read() as c:
        found = row(c, schema.item, item)
        context = {
            "item": found,
            "responses": items.responses(c, item),
            "rows": overview.latest(c, 500, item=item),
            "now": database.now(c),
        }
    return page(request, who, "owner_item.html", **context)


@router.get("/annotators/{annotator}")
def one_annotator(request: Request, who: doors.Owner, annotator: Number) -> Response:
    """A person: what they judged, and how fast over time."""
    with request.app.state.db.read() as c:
        row(c, schema.annotator, annotator)
        speed = overview.speed(c, annotator)
        context = {
            "person": next(x for x in overview.annotators(c) if x["id"] == annotator),
            "links": links(c, schema.invitation.c.annotator == annotator),
            "speed": speed,
            "line": pictures.polyline(speed),
            "rows": overview.latest(c, 100, annotator=annotator),
            "now": database.now(c),
        }
    return page(request, who, "owner_annotator.html", **context)


@router.get("/links")
def list_links(request: Request, who: doors.Owner) -> Response:
    """The links that were given out."""
    with request.app.state.db.read() as c:
        context = {"links": links(c), "now": database.now(c)}
    return page(request, who, "owner_links.html", **context)


@router.get("/log")
def log(request: Request, who: doors.Owner) -> Response:
    """The owner's actions, and the server's decisions."""
    with request.app.state.db.read() as c:
        context = {"events": events.latest(c), "kinds": events.KINDS, "now": database.now(c)}
    return page(request, who, "owner_log.html", **context)


@router.get("/guidelines")
def list_guidelines(request: Request, who: doors.Owner, version: str = "") -> Response:
    """The guidelines, of now or of an older version, and a form for new ones."""
    with request.app.state.db.read() as c:
        current, text = guidelines.current(c)
        if version:
            text = guidelines.at(c, version)
        versions = guidelines.versions(c)
        now = database.now(c)
    if text is None:
        raise HTTPException(404, "There are no guidelines of this version.")
    context = {"current": current, "shown": version or current, "text": text}
    return page(request, who, "owner_guidelines.html", **context, versions=versions, now=now)


@router.get("/export/{kind}")
def download(
    request: Request,
    who: doors.Owner,
    kind: exports.Kind,
    question: After | None = None,
    scale: exports.Scale | None = None,
) -> Response:
    """An export, as a file to keep; of questions it takes the number in their list."""
    with replies.refusals(), request.app.state.db.read() as c:
        known = overview.questions(c)
        if question is not None and question >= len(known):
            raise HTTPException(404, "There is no question of this number.")
        asked = None if question is None else known[question]
        return exports.download(c, kind, asked, scale)


def row(c: sa.Connection, table: sa.Table, number: int) -> sa.Row:
    """The row of a number; HTTPException(404) where there is none."""
    found = c.execute(sa.select(table).where(table.c.id == number)).first()
    if found is None:
        raise HTTPException(404, f"There is no {table.name} {number}.")
    return found


def links(c: sa.Connection, *where: sa.ColumnElement[bool]) -> list[sa.Row]:
    """Invitations, the newest first, with the names of their people."""
    x, people = schema.invitation, schema.annotator
    query = sa.select(x, people.c.name).outerjoin(people, people.c.id == x.c.annotator)
    return [*c.execute(query.where(*where).order_by(x.c.id.desc()).limit(1000))]
