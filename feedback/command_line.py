"""The command line of `python -m feedback`: serve, backup, upgrade, export, import, invite, revoke."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import tyro
from sqlalchemy.exc import DBAPIError
from tyro.conf import OmitArgPrefixes, Positional

from feedback import access, database, exports, items, links
from feedback.settings import PASSWORD, Settings

HERE = Settings()
Database = Annotated[str, tyro.conf.arg(help="URL of the database, as for `serve`.")]


def serve(
    settings: Settings = HERE, items: tuple[str, ...] = (), people: int = 0, open: bool = False
) -> None:
    """Serve the pages and the API until Ctrl-C, and print links for the owner and for new annotators.

    A link is printed this once, since the database keeps its hash alone; people who were invited before
    keep theirs, and another start with `people` invites as many more only where fewer are known.

    Args:
        items: Names of files of items to put first; those that are there already stay as they are.
        people: Number of annotators who are known at least; links are made for those who lack.
        open: Open the first new annotator's link, else the owner's, in a browser.
    """
    import webbrowser

    from feedback import app, server

    if people < 0:
        raise ValueError(f"people is {people}, and must be 0 or more")
    served = app.create_app(settings)
    put(served.state.db, items)
    bound = server.listen(settings)
    at = server.url(settings, bound)
    with served.state.db.write() as c:
        token = access.invite(c, "the server's start", kind="owner", days=1)
        known = access.count(c)
        new = [access.invite(c) for _ in range(known, people)]
    own = [links.link(at, "person", x) for x in new]
    said = [f"owner (this link lasts a day): {links.link(at, 'owner', token)}"]
    said += [f"annotator {known + n}: {x}" for n, x in enumerate(own, start=1)]
    if known and people:
        said.append(f"{known} {'person has a link' if known == 1 else 'people have links'} already")

    def started() -> None:
        print("\n".join(said), flush=True)
        if open:
            webbrowser.open(own[0] if own else links.link(at, "owner", token))

    server.serve(served, bound, started)


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
    database: Database = HERE.database,
) -> None:
    """Write judgements to a file of JSON Lines.

    Args:
        to: Name of the file; -: standard output.
        kind: Comparisons, ratings, rankings or demonstrations, as they are learned from; or raw, all rows.
    """
    with opened(database) as db, db.read() as c:
        text = exports.text(c, kind)
    if to == "-":
        sys.stdout.write(text)
        return
    pathlib.Path(to).write_text(text, encoding="utf-8")
    print(f"{to} has {text.count(chr(10))} rows.")


def import_(files: Positional[tuple[str, ...]], database: Database = HERE.database) -> None:
    """Put items from files; those that are there already stay as they are.

    Args:
        files: Names of files of JSON Lines, in any of the formats that the documentation lists.
    """
    with opened(database, make=True) as db:
        put(db, files)


def put(db: database.Database, files: tuple[str, ...]) -> None:
    """Puts the items of files, and prints how many are new."""
    for file in files:
        rows = exports.read(file)
        with db.write() as c:
            done = items.put(c, rows)
        print(f"{file}: {done['created']} items are new, {done['unchanged']} were there already.")


def invite(
    names: Positional[tuple[str, ...]],
    kind: Literal["person", "prolific", "owner"] = "person",
    days: float | None = None,
    url: str = f"http://{HERE.host}:{HERE.port}",
    database: Database = HERE.database,
) -> None:
    """Make links, and print them this once: the database keeps no link.

    Args:
        names: Names of people, one link each; or names of links, for other kinds.
        kind: A link for one person, for a study on Prolific, or for an owner (or an owner's script).
        days: Days that the links last; None: until they are revoked.
        url: Address under which people reach the server.
    """
    if not names:
        raise ValueError("invite got no names: name the people, as in `invite ada ben`")
    if days is not None and not days > 0:
        raise ValueError(f"days is {days}, and must be above 0")
    with opened(database, make=True) as db, db.write() as c:
        tokens = [access.invite(c, x, kind=kind, days=days) for x in names]
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


COMMANDS = {
    "serve": serve,
    "backup": backup,
    "upgrade": upgrade,
    "export": export,
    "import": import_,
    "invite": invite,
    "revoke": revoke,
}


def main(args: list[str]) -> int:
    """Runs a command; 0, or 1 after a sentence that says what was wrong."""
    secret = os.environ.get(PASSWORD, "")
    if secret and args[:1] == ["serve"] and not {"-h", "--help"} & {*args}:
        args = [args[0], f"--owner-password={secret}", *args[1:]]
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=args,
            prog="python -m feedback",
            description="A place where people judge what models wrote, and what they said.",
            config=(OmitArgPrefixes,),
        )
    except (ValueError, LookupError, database.SchemaError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except DBAPIError as e:
        print(f"error: the database refuses: {str(e.orig).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0
