"""The owner's forms: pause, invite, revoke, block, ask once more, publish guidelines."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Path, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from feedback.entry import access, links
from feedback.store import asking, guidelines, schema
from feedback.web import doors, owner, replies

router = APIRouter(prefix="/owner", include_in_schema=False)
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]


def back(to: str) -> Response:
    """The reply to a form: the page that shows what it did."""
    return RedirectResponse(to, 303)


@router.post("/pause")
def pause(request: Request, who: doors.OwnerForm, on: Annotated[bool, Form()]) -> Response:
    """Stops giving items out, or goes on; what people have before them can still be judged."""
    with request.app.state.db.write() as c:
        asking.pause(c, on)
    return back("/owner")


@router.post("/links")
def invite(
    request: Request,
    who: doors.OwnerForm,
    kind: Annotated[Literal["person", "prolific", "owner"], Form()],
    name: Annotated[str, Form(max_length=100)] = "",
    days: Annotated[str, Form(pattern=r"^[0-9]{0,4}$")] = "",
) -> Response:
    """Makes a link, and shows it this once: the database keeps no link."""
    until = float(days) if days else None
    with replies.refusals(), request.app.state.db.write() as c:
        token = access.invite(c, name.strip(), kind=kind, days=until)
    return shown(request, who, kind, token, name)


@router.post("/links/{number}/revoke")
def revoke(request: Request, who: doors.OwnerForm, number: Number) -> Response:
    """Withdraws a link, with all sessions that it began."""
    with request.app.state.db.write() as c:
        known(access.revoke(c, number))
    return back("/owner/links")


@router.post("/annotators/{number}/link")
def invite_again(request: Request, who: doors.OwnerForm, number: Number) -> Response:
    """Makes a further link for a person, such as one who lost the first."""
    with request.app.state.db.write() as c:
        person = owner.row(c, schema.annotator, number)
        token = access.invite(c, annotator=number)
    return shown(request, who, "person", token, person.name)


def shown(request: Request, who: access.Session, kind: str, token: str, name: str) -> Response:
    """The page that shows a new link."""
    url = request.app.state.settings.url or str(request.base_url)
    at = links.link(url.rstrip("/"), kind, token)
    return owner.page(request, who, "owner_link.html", link=at, kind=kind, name=name)


@router.post("/annotators/{number}/block")
def block(
    request: Request, who: doors.OwnerForm, number: Number, on: Annotated[bool, Form()]
) -> Response:
    """Shuts a person out, or lets them in again."""
    with request.app.state.db.write() as c:
        known(access.block(c, number, on))
    return back(f"/owner/annotators/{number}")


@router.post("/items/{number}/ask")
def ask(request: Request, who: doors.OwnerForm, number: Number) -> Response:
    """Asks one more person about an item."""
    with replies.refusals(), request.app.state.db.write() as c:
        asking.ask_again(c, number)
    return back(f"/owner/items/{number}")


@router.post("/items/{number}/park")
def put_aside(request: Request, who: doors.OwnerForm, number: Number) -> Response:
    """Offers an item no more."""
    with request.app.state.db.write() as c:
        asking.put_aside(c, number)
    return back(f"/owner/items/{number}")


@router.post("/items/{number}/open")
def take_up(request: Request, who: doors.OwnerForm, number: Number) -> Response:
    """Offers an item again that was put aside."""
    with request.app.state.db.write() as c:
        asking.take_up(c, number)
    return back(f"/owner/items/{number}")


@router.post("/guidelines")
def publish(
    request: Request, who: doors.OwnerForm, text: Annotated[str, Form(max_length=200_000)]
) -> Response:
    """Publishes guidelines, which the next item comes with."""
    with request.app.state.db.write() as c:
        guidelines.publish(c, text.replace("\r\n", "\n"))
    return back("/owner/guidelines")


def known(found: bool) -> None:
    """Raises HTTPException(404) where something was not found."""
    if not found:
        raise HTTPException(404, "There is nothing of this number.")
