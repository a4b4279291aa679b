"""Exports by their names, as text and as downloads."""

from typing import Literal, get_args

import sqlalchemy as sa
from starlette.responses import Response

from feedback.formats import export

LINES = "application/x-ndjson"
Kind = Literal["raw", "comparisons", "trl", "ratings", "rankings", "demonstrations"]
Scale = Literal["thumbs", "stars"]
KINDS = get_args(Kind)


def text(
    c: sa.Connection,
    kind: Kind,
    question: str | None = None,
    scale: Scale | None = None,
    better: bool = False,
    aggregate: export.Aggregate = "majority",
) -> str:
    """An export as JSON Lines.

    A ValueError lists the questions, or the scales of ratings, where there are several and none is named, and
    refuses `better` and another `aggregate` for rows that are no comparisons.
    """
    more: dict = {"scale": scale} if kind == "ratings" else {}
    if kind in ("comparisons", "trl"):
        more = {"better": better, "aggregate": aggregate}
    elif better or aggregate != "majority":
        name = "better" if better else "aggregate"
        raise ValueError(
            f"{name} is about comparisons, and kind is {kind}: name comparisons or trl"
        )
    asked = {} if kind == "raw" else {"question": question}
    return export.lines(getattr(export, kind)(c, **asked, **more))


def download(
    c: sa.Connection, kind: Kind, question: str | None = None, scale: Scale | None = None
) -> Response:
    """An export as a file that browsers keep."""
    name = {"Content-Disposition": f'attachment; filename="{kind}.jsonl"'}
    return Response(text(c, kind, question, scale), media_type=LINES, headers=name)
