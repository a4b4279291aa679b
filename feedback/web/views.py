"""Pages from templates, in which everything is escaped that is not markup of the template itself."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from feedback.web import marks, text

FOLDER = pathlib.Path(__file__).parent


def render(
    request: Request,
    name: str,
    /,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> HTMLResponse:
    """The page of the template `name`, which gets `context` and the request."""
    page = templates().get_template(name).render(request=request, **context)
    return HTMLResponse(page.encode("utf-8", "replace"), status, headers)


@functools.cache
def templates() -> jinja2.Environment:
    """The environment of all templates: `visible` and `typed` for texts, and `version`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": marks.visible, "typed": text.typed}
    environment.globals["version"] = version()
    return environment


@functools.cache
def version() -> str:
    """A short hash of all that makes the pages, which is stored with what was judged on them."""
    files = [*(FOLDER / "templates").glob("*.html"), *(FOLDER / "static").glob("*")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
