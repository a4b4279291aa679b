"""Screens of an annotator: which template comes next, and what stands in it."""

import hashlib
import hmac
import uuid
from typing import Any

import sqlalchemy as sa
from markupsafe import Markup

from feedback.entry import access
from feedback.settings import Settings
from feedback.store import (
    answers,
    database,
    items,
    judging,
    leasing,
    outcomes,
    progress,
    schema,
    standing,
)
from feedback.web import pauses, text, wording
from feedback.web.marks import visible

Screen = tuple[str, dict[str, Any]]
PAGE = 50
"""Judgements on a page of the list."""
BEGINNING = 200
"""Characters of a prompt in the list of judgements."""


def screen(c: sa.Connection, settings: Settings, who: access.Session, after: str) -> Screen:
    """Template and context for a person who comes from the answer with the key `after`, if any."""
    assert who.annotator is not None
    last = outcomes.kept(c, after) if after else None
    if last is not None and last.annotator != who.annotator:
        last = None
    if last is not None and last.kind == "judge" and last.purpose == "training":
        return "reason.html", {"csrf": who.csrf, **reason(c, settings, last)}
    got = leasing.lease(c, who.annotator, settings.lease_seconds, settings)
    common = {
        "csrf": who.csrf,
        "key": str(uuid.uuid4()),
        "undo_of": judging.last(c, who.annotator, who.id),
        "notices": notices(c, last, got),
    }
    if isinstance(got, leasing.Waiting):
        return "done.html", common | nothing(c, settings, who.annotator, got.why)
    times = pauses.times(c, who.annotator, database.now(c)) if last is not None else []
    pause = pauses.due(times, settings.pause_after_minutes, settings.pause_after_items)
    secret = database.state(c)["secret"].encode()
    name = hmac.new(secret, f"draft {who.annotator} {got.item}".encode(), hashlib.sha256)
    return "item.html", common | shown(got) | {
        "moved": bool(after),
        "pause": pause,
        "draft_name": name.hexdigest()[:24],
    }


def judged(c: sa.Connection, who: access.Session, start: int) -> dict[str, Any]:
    """The list of a session's judgements, the last one first, after the first `start` of them."""
    rows = judging.history(c, who.annotator, who.id, PAGE + 1, start)
    return {
        "rows": [
            {
                "prompt": beginning(text.turns(x.prompt)),
                "said": wording.said(x.kind, x.choice, x.scale, x.reason),
                "of": "" if x.fixed else x.key,
                "key": str(uuid.uuid4()),
            }
            for x in rows[:PAGE]
        ],
        "start": start,
        "earlier": start + PAGE if len(rows) > PAGE else 0,
        "later": max(0, start - PAGE),
    }


def beginning(turns: list[text.Turn]) -> str:
    """The words that begin the last turn of a prompt, by which a person knows it again."""
    said = turns[-1].text if turns else ""
    return said if len(said) <= BEGINNING else f"{said[:BEGINNING]}…"


def notices(
    c: sa.Connection, last: sa.Row | None, got: leasing.Lease | leasing.Waiting
) -> list[str]:
    """Sentences about the last thing that a person did, where the next item does not say it."""
    if last is None or last.kind == "judge":
        return []
    if last.kind == "surplus":
        return [outcomes.SURPLUS]
    if last.kind == "skip":
        return [wording.SKIPPED]
    if isinstance(got, leasing.Waiting) or got.item != last.item:
        has = standing.excluded(c, last.item, last.annotator)  # who has answered it since
        return [] if has else [wording.GONE]
    x = schema.judgement
    old = c.execute(sa.select(x.c.kind, x.c.choice).where(x.c.id == last.undoes)).one()
    if not old.choice:
        return [wording.AGAIN]
    return [f"{wording.AGAIN} You had said: {wording.choice(old.choice, last.scale)}."]


def shown(got: leasing.Lease) -> dict[str, Any]:
    """The item of a lease, as its page has it."""
    compared = text.differences(*got.responses) if got.kind == "pair" else None
    html = compared or [visible(x) for x in got.responses]
    return {
        "heading": wording.heading(got.kind, got.purpose, got.number, got.of),
        "kind": got.kind,
        "seconds": got.seconds,
        "lease": got.token,
        "number": got.number,
        "of": got.of,
        "turns": text.turns(got.prompt),
        "question": got.question or wording.QUESTIONS[got.scale or got.kind],
        "responses": labelled(html),
        "compared": compared is not None,
        "choices": wording.buttons(got.kind, got.scale),
        "reasons": wording.REASONS,
        "draft": got.draft or {"comment": "", "better": ""},
    }


def labelled(html: list[Markup] | tuple[Markup, ...]) -> list[dict[str, Any]]:
    """Responses with their labels; a single one has none."""
    labels = wording.LABELS if len(html) > 1 else [""]
    return [{"label": label, "html": x} for label, x in zip(labels, html, strict=False)]


def reason(c: sa.Connection, settings: Settings, last: sa.Row) -> dict[str, Any]:
    """A training item with what was said of it, what was expected, and why."""
    item, texts = items.get(c, last.item), [x.text for x in items.responses(c, last.item)]
    counts = progress.counts(c, last.annotator, "training", settings.training_count)
    number = counts.number - 1
    right = answers.is_right(item.scale, item.gold, dict(last._mapping))
    heading = wording.heading(item.kind, "training", number, counts.of)
    return {
        "heading": f"{heading}: {wording.VERDICTS[right]}",
        "number": number,
        "of": counts.of,
        "right": right,
        "said": wording.choice(last.choice, item.scale),
        "expected": wording.choice(answers.on_screen(item.gold, last.shown), item.scale),
        "reason": item.reason,
        "turns": text.turns(item.prompt),
        "responses": labelled([visible(texts[i]) for i in last.shown]),
    }


def nothing(c: sa.Connection, settings: Settings, annotator: int, why: str) -> dict[str, Any]:
    """The page of somebody who gets no item, which says why."""
    heading, message = wording.nothing(why, progress.counts(c, annotator).number - 1)
    finished = why == "done" and access.has_finished(c, annotator)
    return {
        "heading": heading,
        "message": message,
        "code": settings.completion_code if finished else "",
        "again": "Look again" if why in ("waiting", "paused") else "",
    }
