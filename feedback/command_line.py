"""The command line of `python -m feedback`: serve, backup, upgrade, export, import, invite, revoke."""

import dataclasses
import os
import signal
import sys
import threading

import tyro
from sqlalchemy.exc import DBAPIError
from tyro.conf import OmitArgPrefixes

from feedback import commands
from feedback.entry import access, links
from feedback.settings import PASSWORD, Settings
from feedback.store import database


class Given(Settings):
    """Settings of the server, the database and the questions."""

    def __post_init__(self) -> None:
        """Checks nothing: `serve` does, and its refusals are sentences."""


GIVEN = Given()


def serve(
    settings: Given = GIVEN,
    items: tuple[str, ...] = (),
    people: int = 0,
    simulated: bool = False,
    open: bool = False,
    until_eof: bool = False,
) -> None:
    """Serve the pages and the API until Ctrl-C, and print links for the owner and for new annotators.

    A link is printed this once, since the database keeps its hash alone; people who were invited before
    keep theirs, and another start with `people` invites as many more only where fewer are known.

    Args:
        items: Names of files of items to put first; those that are there already stay as they are.
        people: Number of annotators who are known at least; links are made for those who lack.
        simulated: Mark new annotators as programs that judge.
        until_eof: End when standard input does, as it does with the program that holds its other end.
        open: Open the first new annotator's link, else the owner's, in a browser.
    """
    import webbrowser

    from feedback.web import app, server

    if people < 0:
        raise ValueError(f"people is {people}, and must be 0 or more")
    checked = Settings(**dataclasses.asdict(settings))
    served = app.create_app(checked)
    commands.put(served.state.db, items)
    bound = server.listen(checked)
    at = server.url(checked, bound)
    with served.state.db.write() as c:
        token = access.invite(c, "the server's start", kind="owner", days=1)
        known = access.count(c)
        new = [access.invite(c, simulated=simulated) for _ in range(known, people)]
    own = [links.link(at, "person", x) for x in new]
    said = [f"owner (this link lasts a day): {links.link(at, 'owner', token)}"]
    said += [f"annotator {known + n}: {x}" for n, x in enumerate(own, start=1)]
    if known and people:
        said.append(f"{known} {'person has a link' if known == 1 else 'people have links'} already")

    def started() -> None:
        print("\n".join(said), flush=True)
        if until_eof:
            threading.Thread(target=end_at_eof, daemon=True).start()
        if open:
            webbrowser.open(own[0] if own else links.link(at, "owner", token))

    server.serve(served, bound, started)


def end_at_eof() -> None:
    """Waits until standard input ends, then ends this process as Ctrl-C would."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


COMMANDS = {
    "serve": serve,
    "backup": commands.backup,
    "upgrade": commands.upgrade,
    "export": commands.export,
    "import": commands.import_,
    "invite": commands.invite,
    "revoke": commands.revoke,
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
