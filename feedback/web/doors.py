"""Who is asking: the sessions and tokens that a request brings, and the checks against forged requests.

FastAPI dependencies. A person's browser brings a cookie, and with anything that changes something the word
of its session (field `csrf` or header `X-CSRF`); a script brings its token as `Authorization: Bearer`, which
no other site can make a browser send.
"""

import urllib.parse
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from feedback.entry import access
from feedback.settings import is_loopback
from feedback.store import tokens
from feedback.web import errors, rates

NO_SESSION = "This page needs a link of its own: open the link that you were given (again)."
NO_OWNER = (
    "This page is the owner's: sign in, or open the link that the server printed at its start."
)
PLAIN = (
    " If its address begins with http://, ask for one that begins with https:// (the server's owner puts a "
    "proxy that speaks HTTPS before it): over plain HTTP, browsers drop the cookies of this server."
)
NO_TOKEN = (
    "This needs a session, or a token: send the one of your link as Authorization: Bearer TOKEN."
)
FORGED = "This request did not come from a page of this server: load the page again, and repeat it."
BLOCKED = "You can no longer judge here; ask the people who invited you."
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
SAFE = {"GET", "HEAD", "OPTIONS"}


def cookie_name(request: Request, role: str) -> str:
    """The name of a role's cookie: servers on other ports of one machine have other cookies."""
    prefix = "__Host-" if secure(request) else ""
    return f"{prefix}feedback_{role}_{request.url.port or 'web'}"


def secure(request: Request) -> bool:
    """True where cookies travel over TLS alone: always, unless this is plain HTTP on this machine."""
    settings = request.app.state.settings
    plain = request.url.scheme == "http" and is_loopback(request.url.hostname or "")
    return settings.secure_cookies or not plain


def enter(request: Request, reply: Response, role: str, token: str) -> Response:
    """The reply, with the cookie of a new session."""
    name, days = cookie_name(request, role), access.DAYS[role]
    reply.set_cookie(
        name, token, 86400 * days, path="/", secure=secure(request), httponly=True, samesite="lax"
    )
    return reply


def leave(request: Request, reply: Response, role: str) -> Response:
    """The reply, which makes the browser forget the cookie of a role."""
    name = cookie_name(request, role)
    reply.delete_cookie(name, "/", secure=secure(request), httponly=True, samesite="lax")
    return reply


def by_cookie(request: Request, role: str) -> access.Session | None:
    """The session that a browser's cookie names, where it is a live one of this role."""
    token = request.cookies.get(cookie_name(request, role), "")
    if not token:
        return None
    with request.app.state.db.read() as c:
        return access.session(c, token, role)


def holder(request: Request, role: str) -> access.Session | None:
    """Who holds the token of a request: in the header `Authorization` where there is one, else a cookie."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return by_cookie(request, role)
    if scheme.lower() != "bearer":
        return None
    with request.app.state.db.read() as c:
        return access.script(c, token.strip(), role)


def admitted(request: Request, role: str) -> access.Session:
    """Who is asking, where they may: else HTTPException 401 (nobody) or 403 (blocked, or another role)."""
    who = holder(request, role)
    if who is None:
        raise unknown(request, role)
    request.state.who = role if not who.annotator else f"annotator-{who.annotator}"
    if who.blocked:
        raise HTTPException(403, BLOCKED)
    return who


def unknown(request: Request, role: str) -> HTTPException:
    """The refusal of who may not do this: 403 for the other role, 401 for nobody."""
    if holder(request, "annotator" if role == "owner" else "owner"):
        return HTTPException(403, NO_OWNER if role == "owner" else NO_SESSION)
    if "authorization" in request.headers:
        return wrong(request, HTTPException(401, NO_TOKEN, {"WWW-Authenticate": "Bearer"}))
    if errors.wants_json(request.scope):
        return HTTPException(401, NO_TOKEN, {"WWW-Authenticate": "Bearer"})
    plain = PLAIN if request.url.scheme == "http" and secure(request) else ""
    return HTTPException(401, (NO_OWNER if role == "owner" else NO_SESSION) + plain)


def wrong(request: Request, refusal: HTTPException) -> HTTPException:
    """The refusal of a wrong secret, or 429 where too many wrong ones came from its address.

    A right token is let in all the same: it has 256 bits, so that nobody finds one by trying.
    """
    wait = request.app.state.wrong.take(rates.address(request.scope))
    return rates.too_many(wait) if wait else refusal


def check_origin(request: Request) -> None:
    """Raises HTTPException(403) for a request that another site made this browser send.

    Under `Referrer-Policy: no-referrer` browsers say `Origin: null` for this server's own forms, so that
    null decides nothing; where browsers say nothing else, the session's word has to do.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin", "null")
    foreign = urllib.parse.urlsplit(origin).netloc != request.url.netloc
    if site not in ("same-origin", "none") if site else origin != "null" and foreign:
        raise HTTPException(403, FORGED)


def check_forgery(request: Request, who: access.Session, word: str) -> access.Session:
    """`who`, unless a browser's request lacks the word of its session: then HTTPException(403).

    The token of a script proves enough, since no other site has it.
    """
    if who.id is not None and request.method not in SAFE:
        check_origin(request)
        if not tokens.same(word, who.csrf):
            raise HTTPException(403, FORGED)
    return who


async def form_word(request: Request) -> str:
    """The word that a form or a script of the page sent; keeps what was typed for the page of an error."""
    if "X-CSRF" in request.headers:
        return request.headers["X-CSRF"]
    if not request.headers.get("content-type", "").startswith(FORMS):
        return ""
    form = await request.form(max_files=0, max_fields=100)
    typed = [(x, form.get(x)) for x in ("comment", "better")]
    request.state.typed = [(x, y) for x, y in typed if isinstance(y, str) and y]
    word = form.get("csrf", "")
    return word if isinstance(word, str) else ""


Word = Annotated[str, Depends(form_word)]
Bearer = Annotated[
    object, Depends(HTTPBearer(auto_error=False, description="The token of a link."))
]


def annotator(request: Request) -> access.Session:
    """The annotator who asks for a page."""
    return admitted(request, "annotator")


def owner(request: Request) -> access.Session:
    """The owner, who asks for a page."""
    return admitted(request, "owner")


def annotator_form(request: Request, word: Word) -> access.Session:
    """The annotator who sends a form of this server."""
    return check_forgery(request, admitted(request, "annotator"), word)


def owner_form(request: Request, word: Word) -> access.Session:
    """The owner, who sends a form of this server."""
    return check_forgery(request, admitted(request, "owner"), word)


def annotator_call(request: Request, _: Bearer) -> access.Session:
    """The annotator who calls the API, by a script or from a page."""
    word = request.headers.get("x-csrf", "")
    return check_forgery(request, admitted(request, "annotator"), word)


def owner_call(request: Request, _: Bearer) -> access.Session:
    """The owner, who calls the API, by a script or from a page."""
    word = request.headers.get("x-csrf", "")
    return check_forgery(request, admitted(request, "owner"), word)


Annotator = Annotated[access.Session, Depends(annotator)]
AnnotatorForm = Annotated[access.Session, Depends(annotator_form)]
AnnotatorCall = Annotated[access.Session, Depends(annotator_call)]
Owner = Annotated[access.Session, Depends(owner)]
OwnerForm = Annotated[access.Session, Depends(owner_form)]
OwnerCall = Annotated[access.Session, Depends(owner_call)]
