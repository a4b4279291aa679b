"""The application: its routes, what protects them, and what it says to refusals."""

import pathlib

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import OperationalError, TimeoutError
from starlette.exceptions import HTTPException

from feedback.entry import passwords
from feedback.settings import Settings
from feedback.store import database, guidelines
from feedback.web import (
    api,
    api_owner,
    entrance,
    errors,
    owner,
    owner_actions,
    pages,
    protection,
    rates,
    views,
)

ABOUT = """Pairs to judge, judgements, and what the owner does with them.

Send the token of your link as `Authorization: Bearer TOKEN`; a page of this server sends its cookie, and the
word of its session in `X-CSRF`. A reply comes after what it speaks of is in the database, so a request that
got no reply is sent again with the same key."""


def create_app(settings: Settings) -> FastAPI:
    """The application on the database of `settings`, which it brings up to date.

    Raises database.SchemaError for the database of a newer version, and ValueError for settings that
    cannot work.
    """
    db = database.Database(settings.database)
    db.upgrade()
    with db.write() as c:
        if settings.owner_password:
            passwords.keep(c, settings.owner_password)
        if settings.guidelines:
            guidelines.publish(c, read(settings.guidelines))
        elif not guidelines.current(c)[0]:
            guidelines.publish(c, read(views.FOLDER / "guidelines.md"))
    app = FastAPI(
        title="Judgements",
        description=ABOUT,
        version=views.version(),
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        openapi_url="/openapi.json",
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.db, app.state.settings = db, settings
    app.state.wrong = rates.Rate(per_second=1 / 3, burst=10)
    app.add_exception_handler(HTTPException, errors.refuse)
    app.add_exception_handler(RequestValidationError, errors.refuse_fields)
    for failure in (OperationalError, TimeoutError):
        app.add_exception_handler(failure, errors.refuse_database)
    app.add_middleware(protection.Protection)
    for part in (entrance, pages, api, api_owner, owner, owner_actions):
        app.include_router(part.router)
    app.mount("/static", StaticFiles(directory=views.FOLDER / "static"), name="static")
    return app


def read(path: str | pathlib.Path) -> str:
    """The guidelines of a file; a ValueError names a file that cannot be read."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"guidelines is {path}, which cannot be read as UTF-8 ({e})") from None
