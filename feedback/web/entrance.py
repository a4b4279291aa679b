"""Ways in: links of invitations, links from Prolific, the owner's password, and the way out."""

import re
import threading
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from feedback.entry import access, passwords, prolific
from feedback.store import tokens
from feedback.web import doors, rates, views

router = APIRouter(include_in_schema=False)
UNKNOWN = "This link leads nowhere: check that it was copied whole, or ask for another."
REFUSALS = {
    "revoked": "This link was withdrawn: ask the people who sent it for another.",
    "expired": "This link has expired: ask the people who sent it for another.",
    "blocked": doors.BLOCKED,
}
HOMES = {"annotator": "/", "owner": "/owner"}
PROLIFIC = re.compile(r"[A-Za-z0-9_-]{1,64}")
SCRYPTS = threading.BoundedSemaphore(2)
"""Passwords that are checked at once: each takes 32 MiB."""


def _see_other(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303)


@router.get("/i/{token}")
def invitation(request: Request, token: str) -> Response:
    """Exchanges an invitation for a cookie, and leads on to a page without the token in its address."""
    db = request.app.state.db
    with db.read() as c:
        link = access.link(c, token, "person", "owner")
    _check(request, link)
    assert link
    home = _see_other(HOMES[link.role])
    if (who := doors.by_cookie(request, link.role)) and who.invitation == link.id:
        return home
    with db.write() as c:
        session = access.begin(c, link.role, link)
    return doors.enter(request, home, link.role, session)


@router.get("/p/{token}")
def visit(
    request: Request,
    token: str,
    PROLIFIC_PID: str = "",
    STUDY_ID: str = "",
    SESSION_ID: str = "",
) -> Response:
    """Lets a person from Prolific in, as the same annotator each time."""
    db = request.app.state.db
    with db.read() as c:
        link = access.link(c, token, "prolific")
    _check(request, link)
    if not PROLIFIC.fullmatch(PROLIFIC_PID):
        raise HTTPException(400, "This link has no PROLIFIC_PID: open it from Prolific.")
    if (who := doors.by_cookie(request, "annotator")) and not who.blocked:
        with db.read() as c:
            if prolific.known(c, PROLIFIC_PID) == who.annotator:
                return _see_other("/")
    others = (x if PROLIFIC.fullmatch(x) else "" for x in (STUDY_ID, SESSION_ID))
    with db.write() as c:
        annotator = prolific.annotator(c, PROLIFIC_PID, *others)
        if prolific.is_blocked(c, annotator):
            raise HTTPException(403, doors.BLOCKED)
        session = access.begin(c, "annotator", link, annotator)
    return doors.enter(request, _see_other("/"), "annotator", session)


def _check(request: Request, link: access.Link | None) -> None:
    if link is None:
        raise doors.wrong(request, HTTPException(404, UNKNOWN))
    if link.refusal:
        raise HTTPException(403, REFUSALS[link.refusal])


@router.get("/owner/login")
def login_page(request: Request) -> Response:
    """The form for the owner's password."""
    with request.app.state.db.read() as c:
        there = bool(passwords.kept(c))
    return views.render(request, "owner_login.html", there=there, wrong=False)


@router.post("/owner/login")
def login(request: Request, password: Annotated[str, Form(max_length=1000)] = "") -> Response:
    """Exchanges the owner's password for a cookie."""
    doors.check_origin(request)
    if wait := request.app.state.wrong.wait(rates.address(request.scope)):
        raise rates.too_many(wait)
    db = request.app.state.db
    with db.read() as c:
        kept = passwords.kept(c)
    if not SCRYPTS.acquire(blocking=False):
        raise rates.too_many(1)
    try:
        right = tokens.opens(password, kept)
    finally:
        SCRYPTS.release()
    if not right:
        request.app.state.wrong.take(rates.address(request.scope))
        return views.render(request, "owner_login.html", 401, there=bool(kept), wrong=True)
    with db.write() as c:
        session = access.begin(c, "owner", None)
    return doors.enter(request, _see_other("/owner"), "owner", session)


@router.post("/owner/logout")
def owner_logout(request: Request, who: doors.OwnerForm) -> Response:
    """Ends the owner's session."""
    return _out(request, who, "/owner/login")


@router.post("/logout")
def logout(request: Request, who: doors.AnnotatorForm) -> Response:
    """Ends an annotator's session; the same link begins another."""
    return _out(request, who, "/bye")


def _out(request: Request, who: access.Session, to: str) -> Response:
    if who.id is not None:
        with request.app.state.db.write() as c:
            access.end(c, who.id)
    return doors.leave(request, _see_other(to), who.role)
