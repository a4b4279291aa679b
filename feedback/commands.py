"""Commands that do one thing to a database, while a server may be using it."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from feedback import formats
from feedback.entry import access, links
from feedback.formats import importing, omissions
from feedback.formats.export import Aggregate
from feedback.settings import Settings
from feedback.store import database
from feedback.web import exports

HERE = Settings()
Format = Annotated[
    str,
    tyro.conf.arg(
        help=f"One of {', '.join(formats.FORMATS)}; empty: that of the first row's fields."
    ),
]
Database = Annotated[str, tyro.conf.arg(help="URL of the database, as for `serve`.")]


def backup(to: Positional[str], database: Database = HERE.database) -> None:
    """Copy the database to a new file, while a server may be using it.

    Args:
        to: Name of the new file.
    """
    with opened(database, upgrade=False) as db:
        db.backup(to)
        print(f"{db.name} is copied to {to}.")


def upgrade(database: Database = HERE.database) -> None:
    """Bring a database to the tables of this version, with all its rows."""
    with opened(database) as db:
        print(f"{db.name} has the tables of version {db.version}.")


def export(
    to: Positional[str] = "-",
    kind: exports.Kind = "comparisons",
    question: str | None = None,
    scale: exports.Scale | None = None,
    better: bool = False,
    aggregate: Aggregate = "majority",
    database: Database = HERE.database,
) -> None:
    """Write judgements to a file of JSON Lines, and say which of them rows to learn from leave out.

    Args:
        to: Name of the file; -: standard output.
        kind: Rows to learn from (trl: comparisons in the shape of TRL's data sets); or raw, all rows.
        question: Question whose answers are wanted, where items ask several.
        scale: Scale whose ratings are wanted, where there are two.
        better: Compare each better response that a person wrote with those that the person saw, too.
        aggregate: Probability of a comparison: the share of votes, or the posterior of Dawid and Skene's
            model, which gives each person an accuracy.
    """
    with opened(database) as db, db.read() as c:
        text = exports.text(c, kind, question, scale, better, aggregate)
        told = "" if kind == "raw" else omissions.told(c)
    if told:
        print(f"Left out: {told}.", file=sys.stderr)
    if to == "-":
        sys.stdout.buffer.write(text.encode())
        return
    pathlib.Path(to).write_text(text, encoding="utf-8")
    print(f"{to} has {text.count(chr(10))} rows.")


def import_(
    files: Positional[tuple[str, ...]],
    format: Format = "",
    judgements: bool = False,
    database: Database = HERE.database,
) -> None:
    """Put items from files, and judgements that were made elsewhere; what is there already stays.

    Args:
        files: Names of files of JSON Lines, or of JSON arrays; .gz too.
        judgements: Keep the judgements that the files hold, not their items alone.
    """
    if not files:
        raise ValueError("import got no files: name some, as in `import pairs.jsonl`")
    with opened(database, make=True) as db:
        put(db, files, format, judgements)


def put(
    db: database.Database, files: tuple[str, ...], format: str = "", judgements: bool = False
) -> None:
    """Puts what files hold, and prints how much of it is new."""
    for file in files:
        rows = formats.read(file, format)
        with db.write() as c:
            done = importing.bring(c, rows, judgements)
        said = f"{file}: new items: {done['created']}, there already: {done['unchanged']}"
        if judgements:
            said += f"; new judgements: {done['judgements']}, there already: {done['known']}"
        print(f"{said}.")


def invite(
    names: Positional[tuple[str, ...]],
    kind: Literal["person", "prolific", "owner"] = "person",
    days: float | None = None,
    again: bool = False,
    url: str = f"http://{HERE.host}:{HERE.port}",
    database: Database = HERE.database,
) -> None:
    """Make links, and print them this once: the database keeps no link.

    Args:
        names: Names of people, one link each; or names of links, for other kinds.
        kind: A link for one person, for a study on Prolific, or for an owner (or an owner's script).
        days: Days that the links last; None: until they are revoked.
        again: Make further links for people who are known, such as those who lost theirs.
        url: Address under which people reach the server.
    """
    if not names:
        raise ValueError("invite got no names: name the people, as in `invite ada ben`")
    if days is not None and not days > 0:
        raise ValueError(f"days is {days}, and must be above 0")
    with opened(database, make=True) as db, db.write() as c:
        known = [access.named(c, x) if again else None for x in names]
        pairs = zip(names, known, strict=True)
        tokens = [access.invite(c, x, kind=kind, days=days, annotator=y) for x, y in pairs]
    for name, token in zip(names, tokens, strict=True):
        print(f"{name}: {links.link(url.rstrip('/'), kind, token)}")


def revoke(who: Positional[str], database: Database = HERE.database) -> None:
    """Withdraw a link, or all links of a person, and end the sessions that they began.

    Args:
        who: The link itself, or the name of the person.
    """
    with opened(database) as db, db.write() as c:
        found = links.find(c, who)
        for one in found:
            access.revoke(c, one)
    if not found:
        raise ValueError("there is no such link, and nobody of this name has one")
    print(f"Withdrawn: {len(found)} {'link' if len(found) == 1 else 'links'}.")


@contextlib.contextmanager
def opened(url: str, make: bool = False, upgrade: bool = True) -> Iterator[database.Database]:
    """The database at a URL, brought up to date; ValueError where there is none, unless it may be made."""
    db = database.Database(url)
    file = pathlib.Path(db.url.database or "")
    if db.sqlite and not make and not file.exists():
        raise ValueError(f"database is {url}, and there is no file {file}: name the one of `serve`")
    try:
        if upgrade:
            db.upgrade()
        yield db
    finally:
        db.close()
