"""A browser, and a person who sits at it; skips, aloud, where there is none."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from feedback.store import schema

NAMES = ("chromium", "chromium-browser", "google-chrome")
WORDS = " ".join(f"word{i}" for i in range(500))
BOTH = WORDS, WORDS[::-1]
"""A long comment, and a long better response."""
KEY = "k => (document.querySelector('[name=key]')?.value ?? '') !== k"


def kept(row: Any) -> tuple[str, str]:
    """The texts that a person typed, as a row of the database has them."""
    return row.comment, row.better


@contextlib.contextmanager
def run() -> Iterator[Any]:
    """A chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Person:
    """Somebody with a link, at a page in a browser of their own; the clock of the page is ours.

    `posts` has what the page sent, `foreign` requests to other places, `dialogs` and `faults` what a page
    must not do.
    """

    def __init__(self, browser: Any, server: Any, name: str, **context: Any):
        self.server, self.name, self.link = server, name, f"/i/{server.invite(name)}"
        self.context = browser.new_context(base_url=server.url, **context)
        self.foreign: list[str] = []
        self.posts: list[str] = []
        self.dialogs: list[str] = []
        self.faults: list[str] = []
        self.page = self.tab()
        if context.get("java_script_enabled", True):
            self.page.clock.install()
        self.page.goto(self.link)

    def tab(self) -> Any:
        """One more page of this browser."""
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", self._asked)
        page.on("dialog", lambda x: (self.dialogs.append(x.message), x.dismiss()))
        page.on("pageerror", lambda x: self.faults.append(str(x)))
        page.on("console", lambda x: self.faults.append(x.text) if "Policy" in x.text else None)
        return page

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self.server.url):
            self.foreign.append(request.url)
        if request.method == "POST":
            self.posts.append(request.url)

    def close(self) -> None:
        self.context.close()

    @property
    def heading(self) -> str:
        return self.page.locator("#heading").inner_text()

    @property
    def status(self) -> Any:
        return self.page.locator("#status")

    def key(self) -> str:
        """The key of the answer that the page would send."""
        found = self.page.locator("[name=key]")
        return found.first.input_value() if found.count() else ""

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Waits until another page has come, which is then old enough for single keys."""
        key = self.key()
        yield
        self.page.wait_for_function(KEY, arg=key)
        self.settle()

    def settle(self) -> None:
        """Lets half a second of the page's clock go by."""
        self.page.clock.run_for(500)

    def press(self, *keys: str) -> None:
        """Presses keys of which each leads to another page."""
        for key in keys:
            with self.moving():
                self.page.keyboard.press(key)

    def rows(self, *kinds: str) -> list[Any]:
        """Judgements of this person in the database, the first one first."""
        x, people = schema.judgement, schema.annotator
        mine = sa.select(x).join(people).where(people.c.name == self.name).order_by(x.c.id)
        with self.server.writing() as c:
            return [row for row in c.execute(mine) if not kinds or row.kind in kinds]

    def choices(self) -> list[Any]:
        """What this person chose, in the order of the screen."""
        return [row.choice for row in self.rows("judge")]

    def write(self, comment: str = WORDS, better: str = WORDS[::-1]) -> None:
        """Types into both fields, which their keys open, and leaves them."""
        self.settle()
        for key, said in (("c", comment), ("w", better)):
            self.page.keyboard.press(key)
            self.page.keyboard.insert_text(said[:-10])
            self.page.keyboard.type(said[-10:])
            self.page.keyboard.press("Escape")

    def texts(self) -> tuple[str, ...]:
        """What stands in both fields."""
        return tuple(self.page.locator(f"#{x}").input_value() for x in ("comment", "better"))
