"""Exports: what people said, as rows that rlhf_jax and TRL learn from, and raw with all that was shown.

The rows to learn from hold judgements that stand, of items of work: training, hidden gold, repeats, surplus,
skips, what was undone and what blocked people said stay out (`omissions` counts them). Equal databases give
equal bytes (`lines`).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import sqlalchemy as sa

from feedback.store import schema

Row = dict[str, Any]
Aggregate = Literal["majority", "dawid_skene"]
_item, _response, _slot = schema.item, schema.response, schema.slot
_said, _people = schema.judgement, schema.annotator
_choice, _round = schema.choice, schema.rounds
_undone, _old = _said.alias("undone"), _item.alias("old")
VOTES = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""The share of a vote that the first response gets; "both are bad" is no vote."""
SELECTED = ("strategy", "score", "probability")
"""Columns of an item's selection, which the raw export gives beside its round and model."""
DIGITS = 6
"""Digits of shares and means, which a float32 keeps."""


def lines(rows: Iterable[Mapping]) -> str:
    """The rows as JSON Lines: one object a line, its keys in the order of the alphabet.

    Text stays as it is, but in a row with a lone surrogate, which UTF-8 cannot hold: that row is ASCII.
    """
    return "".join(f"{_line(row)}\n" for row in rows)


def _line(row: Mapping) -> str:
    text = json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False)
    if any("\ud800" <= x <= "\udfff" for x in text):
        return json.dumps(row, sort_keys=True, allow_nan=False)
    return text


def raw(c: sa.Connection) -> list[Row]:
    """Every row of judgements, by time: what was said, and the item with all that was shown."""
    texts = _texts(c)
    columns = (
        *(_said, _people.c.name, _people.c.simulated, _people.c.blocked),
        _undone.c.key.label("undid"),
        *(_slot.c.done.label("done"), _old.c.external.label("old")),
        *(x.label(f"item_{x.name}") for x in _item.c),
        *(x.label(f"selection_{x.name}") for x in _choice.c if x.name in SELECTED),
        *(_choice.c.model_version.label("selection_model"), _round.c.name.label("selection_round")),
    )
    query = sa.select(*columns).select_from(_said).join(_people, _people.c.id == _said.c.annotator)
    query = query.join(_item, _item.c.id == _said.c.item)
    query = query.outerjoin(_slot, _slot.c.done == _said.c.id)
    query = query.outerjoin(_undone, _undone.c.id == _said.c.undoes)
    query = query.outerjoin(_old, _old.c.id == _item.c.repeats)
    query = query.outerjoin(_choice, _choice.c.item == _item.c.id)
    query = query.outerjoin(_round, _round.c.id == _choice.c.round)
    rows = [_raw(x, texts) for x in c.execute(query)]
    return sorted(rows, key=lambda x: (x["at"], x["kind"] == "undo", x["key"]))


def _raw(x: sa.Row, texts: Mapping[int, list[Row]]) -> Row:
    same = (
        *("key", "kind", "at", "shown", "choice", "preference", "degree", "rating", "ranks"),
        *("reason", "comment", "better", "differences", "server_ms", "visible_ms"),
        *("guidelines", "page_version"),
    )
    of_item = (
        *("kind", "scale", "question", "prompt", "wanted", "purpose", "gold", "reason"),
        "metadata",
    )
    item = {name: getattr(x, f"item_{name}") for name in of_item}
    item |= {"id": x.item_external, "repeats": x.old, "responses": texts[x.item_id]}
    selection = {name: getattr(x, f"selection_{name}") for name in ("round", *SELECTED, "model")}
    item["selection"] = None if x.selection_round is None else selection
    told = {"annotator": x.name, "simulated": x.simulated, "blocked": x.blocked is not None}
    told |= {"stands": x.done is not None}
    return {name: getattr(x, name) for name in same} | told | {"undoes": x.undid, "item": item}


def comparisons(
    c: sa.Connection,
    question: str | None = None,
    better: bool = False,
    aggregate: Aggregate = "majority",
) -> list[Row]:
    """The `probability` that each pair's first response is better, and its number of votes, `weight`.

    The probability is the share of votes, of which a tie is half a one for each and "both are bad" none, or
    the posterior of Dawid and Skene's model, in which each person has an accuracy. With `better`, what people
    wrote as a better response is compared with each that they saw. A ValueError lists the questions where
    there are several and `question` names none.
    """
    votes = [x for x in _standing(c, "pair", question) if x.preference in VOTES]
    weight = Counter(x.item for x in votes)
    texts, rows = _texts(c), []
    shares = _posteriors(votes) if aggregate == "dawid_skene" else _shares(votes)
    for x in {x.item: x for x in votes}.values():
        said = [y["text"] for y in texts[x.item]]
        share = round(shares[x.item], DIGITS)
        rows.append(_of(x, responses=said, probability=share, weight=weight[x.item]))
    if better:
        for x in _standing(c, None, question):
            for old in [y["text"] for y in texts[x.item]] if x.better.strip() else []:
                rows.append(_of(x, responses=[x.better, old], probability=1.0, weight=1))
    return _sorted(rows)


def _shares(votes: Iterable[sa.Row]) -> dict[int, float]:
    found: dict[int, list[float]] = defaultdict(list)
    for x in votes:
        found[x.item].append(VOTES[x.preference])
    return {item: sum(shares) / len(shares) for item, shares in found.items()}


def _posteriors(votes: Iterable[sa.Row]) -> dict[int, float]:
    import numpy as np

    from rlhf_jax.people import aggregation

    said = [*votes]
    items, item = np.unique(np.array([x.item for x in said], int), return_inverse=True)
    person = np.unique(np.array([x.annotator for x in said], int), return_inverse=True)[1]
    first = np.array([VOTES[x.preference] for x in said], float)
    found = aggregation.dawid_skene(aggregation.Votes(item, person, first)).probability
    return dict(zip(items.tolist(), found.tolist(), strict=True))


def trl(
    c: sa.Connection,
    question: str | None = None,
    better: bool = False,
    aggregate: Aggregate = "majority",
) -> list[Row]:
    """The comparisons in the shape of TRL's data sets, prompt, chosen, rejected; pairs of 1/2 stay out.

    The answers to a prompt of messages are messages, too.
    """
    rows = []
    for row in comparisons(c, question, better, aggregate):
        if row["probability"] != 0.5:
            best = row["responses"][:: 1 if row["probability"] > 0.5 else -1]
            if not isinstance(row["prompt"], str):
                best = [[{"role": "assistant", "content": x}] for x in best]
            rows.append({"prompt": row["prompt"], "chosen": best[0], "rejected": best[1]})
    return rows


def ratings(c: sa.Connection, question: str | None = None, scale: str | None = None) -> list[Row]:
    """The mean rating of each single response, and the number of ratings, `weight`.

    Thumbs are 0 and 1, stars 1 to 5. A ValueError asks for a `scale` where there are both.
    """
    found: dict[int, list[int]] = defaultdict(list)
    items = {}
    for x in _standing(c, "single", question):
        if scale in (None, x.scale):
            items[x.item] = x
            found[x.item].append(x.rating)
    if len(scales := {x.scale for x in items.values()}) > 1:
        raise ValueError(
            f"there are ratings on the scales {' and '.join(sorted(scales))}: name one"
        )
    texts, rows = _texts(c), []
    for id, given in found.items():
        mean = round(sum(given) / len(given), DIGITS)
        said = {"response": texts[id][0]["text"], "rating": mean, "weight": len(given)}
        rows.append(_of(items[id], **said, scale=items[id].scale))
    return _sorted(rows)


def rankings(c: sa.Connection, question: str | None = None) -> list[Row]:
    """The ranks that each person gave to the responses of an item, 1 for the best."""
    texts = _texts(c)
    return _sorted(
        _of(x, responses=[y["text"] for y in texts[x.item]], ranks=x.ranks, weight=1)
        for x in _standing(c, "ranking", question)
        if len({y["text"] for y in texts[x.item]}) == len(texts[x.item])
    )


def demonstrations(c: sa.Connection, question: str | None = None) -> list[Row]:
    """The better responses that people wrote."""
    found = _standing(c, None, question)
    return _sorted(_of(x, response=x.better) for x in found if x.better.strip())


def _standing(c: sa.Connection, kind: str | None, question: str | None) -> list[sa.Row]:
    """The judgements that stand, of items of work of one kind, in the order of ids, times and keys.

    Those of people who are blocked now are not among them.
    """
    columns = (_item.c.external, _item.c.prompt, _item.c.question, _item.c.scale)
    query = sa.select(_said, *columns).join(_slot, _slot.c.done == _said.c.id)
    query = query.join(_item, _item.c.id == _said.c.item).where(_item.c.purpose == "work")
    query = query.join(_people, _people.c.id == _said.c.annotator)
    query = query.where(_people.c.blocked.is_(None))
    if kind:
        query = query.where(_item.c.kind == kind)
    found = sorted(c.execute(query), key=lambda x: (x.external, x.at, x.key))
    asked = {x.question or "" for x in found}
    if question is None and len(asked) > 1:
        known = ", ".join(map(repr, sorted(asked)))
        raise ValueError(f"the items ask {len(asked)} questions, {known}: name one")
    return [x for x in found if question in (None, x.question or "")]


def _texts(c: sa.Connection) -> dict[int, list[Row]]:
    """The responses of each item, in its own order."""
    found: dict[int, list[Row]] = defaultdict(list)
    for x in c.execute(sa.select(_response).order_by(_response.c.item, _response.c.position)):
        found[x.item].append({"text": x.text, "policy": x.policy, "sampling": x.sampling})
    return found


def _of(x: sa.Row, **said: Any) -> Row:
    """A row about the item of a judgement, with its question where it has one of its own."""
    asked = {"question": x.question} if x.question else {}
    return {"id": x.external, "prompt": x.prompt} | said | asked


def _sorted(rows: Iterable[Row]) -> list[Row]:
    """The rows in the order of their ids, and then of all that they say."""
    return sorted(rows, key=lambda row: (row["id"], json.dumps(row, sort_keys=True)))
