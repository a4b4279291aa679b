"""The labelling page, served beside a program that puts questions to people and waits for their answers.

    with served(folder) as page:
        rows = collect(page, items, tastes)         # rows of the raw export

The page is a process of its own, which ends with the block, or with this process in whatever way that ends.
Its database is feedback.db in the folder, so that the next start goes on where this one ended.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.progress import Progress

from rlhf_jax.people.client import Choose, Client, work
from rlhf_jax.runs import disk

Item = dict[str, Any]
DATABASE, TOKENS, LOG = "feedback.db", "people.json", "page.log"
EVERY = 2.0
"""Seconds between two looks at what people have judged."""


class Page(NamedTuple):
    """A page that is served: its owner, and the simulated people who have links to it."""

    owner: Client
    people: tuple[Client, ...]


@contextlib.contextmanager
def served(
    folder: pathlib.Path, names: Sequence[str] = (), port: int = 0, annotators: int = 0
) -> Iterator[Page]:
    """Serves the page of a folder, for simulated people of these names, or for so many human annotators.

    The annotators' links are printed. Raises ValueError, with the page's own sentence, where it cannot start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{folder / DATABASE}"
    tokens = _tokens(folder, database, names) if names else []
    command = [sys.executable, "-m", "feedback", "serve", "--database", database, "--until-eof"]
    command += ["--port", str(port), "--people", str(annotators)]
    with (folder / LOG).open("ab") as log:
        page = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert page.stdin is not None and page.stdout is not None
    told = print if annotators else _ignore
    relay = threading.Thread(target=_relay, args=(page.stdout, told), daemon=True)
    try:
        first = page.stdout.readline()
        if not first:
            raise ValueError(_last_line(folder / LOG))
        told(first.strip(), flush=True)
        relay.start()
        address, _, token = first.strip().rpartition(" ")[2].rpartition("/i/")
        owner = Client(address, token)
        yield Page(owner, tuple(Client(address, x) for x in tokens))
    finally:
        page.stdin.close()
        page.wait()
        if relay.ident:
            relay.join()
        page.stdout.close()


def _ignore(*_: object, **__: object) -> None:
    pass


def _relay(lines, told: Callable) -> None:
    for line in lines:
        told(line.rstrip(), flush=True)


def _tokens(folder: pathlib.Path, database: str, names: Sequence[str]) -> list[str]:
    """The tokens of simulated people, who are invited once."""
    if not (folder / TOKENS).exists():
        for left in folder.glob(f"{DATABASE}*"):
            left.unlink()  # of a start that was ended before anybody had a link
        command = [sys.executable, "-m", "feedback", "invite", *names, "--simulated"]
        done = subprocess.run(
            [*command, "--database", database], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(done.stderr.strip().removeprefix("error: "))
        links = [line.rpartition("/")[2] for line in done.stdout.splitlines()]
        disk.write_json(folder / TOKENS, dict(zip(names, links, strict=True)))
    known = json.loads((folder / TOKENS).read_text())
    return [known[name] for name in names]


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text().strip().splitlines() or ["it said nothing"]
    return f"the labelling page does not start: {lines[-1].removeprefix('error: ')}"


def collect(
    page: Page, items: list[Item], tastes: Sequence[Choose], what: str = "judgements"
) -> list[dict[str, Any]]:
    """The rows of the raw export, once every item has the judgements that it wants.

    Each simulated person judges all that there is, by the taste of the same place; where there are no tastes,
    people do, and a progress bar that says `what` counts.
    """
    page.owner.put(items)
    for person, taste in zip(page.people, tastes, strict=True):
        work(person, taste)
    wanted = {item["id"]: item["wanted"] for item in items}
    total = sum(wanted.values())
    if tastes:
        rows = page.owner.export("raw")
        if (found := _judged(rows, wanted)) != total:
            raise ValueError(f"{found} of {total} judgements were made, and nobody gets the others")
        return rows
    with Progress() as bar:
        task = bar.add_task(what, total=total)
        while True:
            rows = page.owner.export("raw")
            found = _judged(rows, wanted)
            bar.update(task, completed=found)
            if found >= total:
                return rows
            time.sleep(EVERY)


def _judged(rows: list[dict[str, Any]], wanted: dict[str, int]) -> int:
    """How many judgements stand of the items that are wanted."""
    return sum(x["stands"] and x["kind"] == "judge" and x["item"]["id"] in wanted for x in rows)
