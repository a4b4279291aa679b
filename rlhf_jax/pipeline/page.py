"""The labelling page, served beside a program that puts questions to people and waits for their answers.

    with served(folder) as page:
        rows = collect(page, items, tastes)         # rows of the raw export

The page is a process of its own, which ends with the block, or with this process in whatever way that ends.
Its database is feedback.db in the folder, so that the next start goes on where this one ended.
"""

import contextlib
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
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
    folder: pathlib.Path, simulated: int = 0, annotators: int = 0, port: int = 0
) -> Iterator[Page]:
    """Serves the page of a folder, for so many simulated people, or else for so many human annotators.

    The annotators' links are printed, and `port` is theirs: simulated people take any. Raises ValueError,
    with the page's own sentence, where it cannot start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if simulated and not (folder / TOKENS).exists():
        for left in folder.glob(f"{DATABASE}*"):
            left.unlink()  # of a start that was ended before anybody's link was kept
    command = [sys.executable, "-m", "feedback", "serve", "--until-eof"]
    command += ["--database", f"sqlite:///{folder / DATABASE}"]
    command += ["--people", str(simulated or annotators)]
    command += ["--simulated", "--port=0"] if simulated else ["--port", str(port)]
    with (folder / LOG).open("ab") as log:
        page = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert page.stdin is not None and page.stdout is not None
    relay = threading.Thread(target=_relay, args=(page.stdout, not simulated), daemon=True)
    try:
        first = page.stdout.readline().strip()
        if not first:
            raise ValueError(_last_line(folder / LOG))
        address, _, token = first.rpartition(" ")[2].rpartition("/i/")
        if simulated and not (folder / TOKENS).exists():
            links = [page.stdout.readline().strip() for _ in range(simulated)]
            disk.write_json(folder / TOKENS, [link.rpartition("/i/")[2] for link in links])
        tokens = disk.read_json(folder / TOKENS) if simulated else []
        if not simulated:
            print(first, flush=True)
        relay.start()
        yield Page(Client(address, token), tuple(Client(address, x) for x in tokens))
    finally:
        page.stdin.close()
        page.wait()
        if relay.ident:
            relay.join()
        page.stdout.close()


def _relay(lines: Iterable[str], told: bool) -> None:
    """Reads what the page says, so that it never waits, and prints it where it is to be told."""
    for line in lines:
        if told:
            print(line.rstrip(), flush=True)


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
