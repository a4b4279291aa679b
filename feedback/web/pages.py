"""The annotators' pages: plain forms, each answered by a redirect, so that they work without a script.

A form has the key of its answer from the server, so however often it is sent, it is one row.
"""

import re
import uuid
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from feedback.entry import access
from feedback.store import drafts, guidelines, holding, judging, leasing, outcomes, progress
from feedback.store.answers import Answer
from feedback.web import doors, errors, replies, screens, text, views, wording

router = APIRouter(include_in_schema=False)
NO_CHOICE = "No answer was chosen: press one of the buttons under the text."


async def form(request: Request) -> FormData:
    """The fields of a form."""
    return await request.form(max_files=0, max_fields=100)


Form = Annotated[FormData, Depends(form)]
Start = Annotated[int, Query(ge=0, le=2**31 - 1)]


def field(form: FormData, name: str, most: int = 2**20) -> str:
    """A field's text of at most so many characters, with line ends as \\n; empty where it is missing."""
    value = form.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise HTTPException(422, f"{name} is longer than {most} characters: shorten it.")
    return value.replace("\r\n", "\n")


def key_of(form: FormData) -> str:
    """The key of an answer, which is a UUID."""
    try:
        return str(uuid.UUID(field(form, "key", 100)))
    except ValueError:
        raise HTTPException(422, "key is not a UUID: load the page again.") from None


def number(said: object) -> int:
    """A small whole number of a form."""
    if not isinstance(said, str) or not re.fullmatch(r"-?[0-9]{1,9}", said):
        raise HTTPException(422, NO_CHOICE)
    return int(said)


def choice(form: FormData) -> dict:
    """The choice that a form holds, in the order of the screen."""
    if "both_bad" in form:
        return {"both_bad": True}
    if "rank" in form:
        return {"ranks": [number(x) for x in form.getlist("rank")]}
    name = next((x for x in ("degree", "rating") if x in form), "")
    return {name: number(form.get(name))}


def place(request: Request, who: access.Session) -> dict:
    """Facts about a request that the database's functions take besides what it says."""
    return {"session": who.id, "settings": request.app.state.settings}


def onward(done: outcomes.Outcome, key: str, refused: str = "") -> Response:
    """The way to the next page, which tells of the answer under `key`; 409 is a page of its own."""
    if done.status == 409:
        raise HTTPException(409, refused or done.why)
    return RedirectResponse(f"/?after={key}", 303)


@router.get("/")
def item(request: Request, who: doors.Annotator, after: str = "") -> Response:
    """The item to judge, or the reason after a training item, or why there is nothing to judge."""
    with request.app.state.db.write() as c:
        name, context = screens.screen(c, request.app.state.settings, who, after)
    return views.render(request, name, **context)


@router.post("/judge")
def judge(request: Request, who: doors.AnnotatorForm, form: Form) -> Response:
    """Keeps an answer."""
    key, seen = key_of(form), field(form, "visible_ms", 20)
    answer = Answer(
        lease=field(form, "lease", 200),
        choice=choice(form),
        comment=field(form, "comment"),
        better=field(form, "better"),
        differences="differences" in form,
        visible_ms=min(number(seen), 2**31 - 1) if seen else None,
        page_version=field(form, "page_version", 100) or None,
    )
    with replies.refusals(), request.app.state.db.write() as c:
        done = judging.judge(c, who.annotator, key, answer, **place(request, who))
    return onward(done, key, wording.ANSWERED)


@router.post("/skip")
def skip(request: Request, who: doors.AnnotatorForm, form: Form) -> Response:
    """Skips an item; asks first where something was typed, which is kept in any case."""
    key, lease, reason = key_of(form), field(form, "lease", 200), field(form, "reason", 20)
    with replies.refusals(), request.app.state.db.write() as c:
        if "sure" not in form and keep(c, who, form):
            name, word = "sure.html", who.csrf
            return views.render(request, name, csrf=word, key=key, lease=lease, reason=reason)
        item = holding.find(c, who.annotator, lease).item
        comment = (drafts.read(c, who.annotator, item) or {"comment": ""})["comment"]
        done = judging.skip(c, who.annotator, key, lease, reason, comment, **place(request, who))
    return onward(done, key)


@router.post("/undo")
def undo(request: Request, who: doors.AnnotatorForm, form: Form) -> Response:
    """Takes back an answer of the session, and keeps what was typed about the item on the page."""
    key, of = key_of(form), field(form, "of", 100)
    with replies.refusals(), request.app.state.db.write() as c:
        if field(form, "lease", 200):
            keep(c, who, form)
        done = judging.undo(c, who.annotator, key, of, **place(request, who))
    return onward(done, key)


@router.get("/judgements")
def judgements(request: Request, who: doors.Annotator, start: Start = 0) -> Response:
    """Everything that was said in the session, each with a way to take it back."""
    with request.app.state.db.read() as c:
        context = screens.judged(c, who, start)
    return views.render(request, "judgements.html", csrf=who.csrf, **context)


@router.post("/draft")
def draft(request: Request, who: doors.AnnotatorForm, form: Form) -> Response:
    """Keeps what was typed, for the script and for the button of those without it."""
    with replies.refusals(), request.app.state.db.write() as c:
        keep(c, who, form)
    script = errors.wants_json(request.scope)
    return Response(status_code=204) if script else RedirectResponse("/", 303)


def keep(c: sa.Connection, who: access.Session, form: FormData) -> bool:
    """Keeps what was typed about the item of a lease; False where there was nothing to keep."""
    comment, better = field(form, "comment"), field(form, "better")
    at = holding.find(c, who.annotator, field(form, "lease", 200))
    if comment or better or drafts.read(c, who.annotator, at.item):
        drafts.save(c, who.annotator, at.item, comment, better)
    return bool(comment.strip() or better.strip())


@router.post("/lease/extend")
def extend(request: Request, who: doors.AnnotatorForm, form: Form) -> Response:
    """Holds the item for its person for longer: {"seconds"}, or 410 where it is held no more."""
    seconds = request.app.state.settings.lease_seconds
    with replies.refusals(), request.app.state.db.write() as c:
        held = leasing.extend(c, who.annotator, field(form, "lease", 200), seconds)
    if held is None:
        raise HTTPException(410, "This item is no longer held for you.")
    return replies.Json({"seconds": held})


@router.get("/guidelines")
def show_guidelines(request: Request, who: doors.Annotator) -> Response:
    """The owner's guidelines."""
    with request.app.state.db.read() as c:
        _, said = guidelines.current(c)
    return views.render(request, "guidelines.html", csrf=who.csrf, guidelines=text.guidelines(said))


@router.get("/keys")
def show_keys(request: Request, who: doors.Annotator) -> Response:
    """The list of keys."""
    return views.render(request, "keys.html", csrf=who.csrf, keys=wording.KEYS)


@router.get("/bye")
def bye(request: Request) -> Response:
    """The page of those who stop, with or without a session."""
    who = doors.by_cookie(request, "annotator")
    if who is None or who.blocked:
        return views.render(request, "bye.html", csrf="", judged=0)
    with request.app.state.db.read() as c:
        judged = progress.counts(c, who.annotator).number - 1
    return views.render(request, "bye.html", csrf=who.csrf, judged=judged)
