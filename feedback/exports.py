"""Exports as they are downloaded: JSON Lines."""

import json
from typing import Literal, get_args

import sqlalchemy as sa
from starlette.responses import Response

try:
    from feedback import export
except ImportError:
    export = None

LINES = "application/x-ndjson"
Kind = Literal["raw", "comparisons", "ratings", "rankings", "demonstrations"]
KINDS = get_args(Kind)


def text(c: sa.Connection, kind: Kind) -> str:
    """An export: one JSON object a line."""
    rows = getattr(export, kind)(c)
    return "".join(json.dumps(x) + "\n" for x in rows)


def download(c: sa.Connection, kind: Kind) -> Response:
    """An export as a file that browsers keep."""
    name = {"Content-Disposition": f'attachment; filename="{kind}.jsonl"'}
    return Response(text(c, kind), media_type=LINES, headers=name)
