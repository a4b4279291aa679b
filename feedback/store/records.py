"""Records of what people judge: an item is a prompt with one or more responses."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from feedback.store import answers
from feedback.store.columns import AWKWARD

RESPONSES = {"pair": (2, 2), "single": (1, 1), "ranking": (2, 8)}
"""Least and greatest number of responses of each kind of item."""

LONGEST_ID = 200
"""Most characters of an item's id, and of the names in its selection."""
LARGEST = 1e100
"""Greatest size of a score."""


@dataclasses.dataclass(frozen=True)
class Response:
    """One text that a policy wrote."""

    text: str
    policy: str | None = None
    sampling: dict | None = None


@dataclasses.dataclass(frozen=True)
class Selection:
    """How an item was chosen to be asked about: by which strategy, in which round of a training loop."""

    round: str
    strategy: str
    score: float | None = None
    """The strategy's score of the item; None where the item was drawn."""
    probability: float | None = None
    """The probability with which the item was drawn; None where its score chose it."""
    model: str | None = None
    """Version of the model that the score is of."""

    @classmethod
    def of(cls, raw: Any) -> "Selection":
        """The selection of a JSON object; a ValueError names the field, its value and the remedy."""
        if not isinstance(raw, Mapping):
            raise ValueError(f"a selection is {raw!r:.80}, and must be an object")
        _refuse_unknown("a selection", raw, {x.name for x in dataclasses.fields(cls)}, "metadata")
        for name in ("round", "strategy", "model"):
            value = raw.get(name)
            if name == "model" and value is None:
                continue
            if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ID:
                raise ValueError(
                    f"a selection's {name} is {value!r:.80}, and must be a text of 1 to {LONGEST_ID} "
                    "characters"
                )
            if AWKWARD.search(value):
                raise ValueError(
                    f"a selection's {name} is {value!r:.80}, and must be without NUL and lone surrogates"
                )
        numbers = {}
        for name, least, most in (("score", -LARGEST, LARGEST), ("probability", 0, 1)):
            value = raw.get(name)
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most:
                raise ValueError(
                    f"a selection's {name} is {value!r:.80}, and must be a number from {least} to {most}"
                )
            numbers[name] = float(value)
        return cls(raw["round"], raw["strategy"], **numbers, model=raw.get("model"))


@dataclasses.dataclass(frozen=True)
class Item:
    """One question to people."""

    kind: str
    prompt: str | list[dict]
    responses: tuple[Response, ...]
    id: str = ""
    scale: str | None = None
    wanted: int = 1
    purpose: str = "work"
    gold: Any = None
    reason: str | None = None
    question: str | None = None
    metadata: dict | None = None
    selection: Selection | None = None

    @classmethod
    def of(cls, raw: Mapping) -> "Item":
        """The item of a JSON object; a ValueError names the field, its value and the remedy."""
        if not isinstance(raw, Mapping):
            raise ValueError(f"an item is {raw!r:.80}, and must be an object")
        _refuse_unknown("an item", raw, {x.name for x in dataclasses.fields(cls)}, "metadata")
        given = {k: v for k, v in raw.items() if v is not None}
        for name in ("prompt", "responses"):
            if name not in given:
                raise ValueError(f"an item has no {name}: give one")
        responses = given["responses"]
        if not isinstance(responses, list | tuple):
            raise ValueError(f"responses is {responses!r:.80}, and must be a list")
        given["responses"] = tuple(map(_response, responses))
        given.setdefault("kind", {1: "single", 2: "pair"}.get(len(responses), "ranking"))
        if given["kind"] == "single":
            given.setdefault("scale", "thumbs")
        if "selection" in given:
            given["selection"] = Selection.of(given["selection"])
        item = cls(**given)
        _check(item)
        if not item.id:
            item = dataclasses.replace(item, id=hash_of(item, "wanted", "metadata", "selection"))
        return item


def _refuse_unknown(what: str, raw: Mapping, known: set[str], place: str) -> None:
    unknown = sorted(set(raw) - known)
    if unknown:
        raise ValueError(f"{what} has the unknown field {unknown[0]!r}: put it in {place}")


def _response(raw: Any) -> Response:
    if isinstance(raw, str):
        return Response(raw)
    if not isinstance(raw, Mapping) or not isinstance(raw.get("text"), str):
        raise ValueError(f"a response is {raw!r:.80}, and must be an object with a text")
    _refuse_unknown("a response", raw, {"text", "policy", "sampling"}, "sampling")
    policy, sampling = raw.get("policy"), raw.get("sampling")
    if policy is not None and not isinstance(policy, str):
        raise ValueError(f"a response's policy is {policy!r:.80}, and must be a name")
    if sampling is not None and not isinstance(sampling, Mapping):
        raise ValueError(f"a response's sampling is {sampling!r:.80}, and must be an object")
    return Response(raw["text"], policy, None if sampling is None else dict(sampling))


def _check(item: Item) -> None:
    """Refuses an item that nobody could judge."""
    _check_types(item)
    if item.kind not in RESPONSES:
        raise ValueError(f"kind is {item.kind!r:.80}, and must be pair, single or ranking")
    least, most = RESPONSES[item.kind]
    if not least <= len(item.responses) <= most:
        wanted = least if least == most else f"{least} to {most}"
        raise ValueError(
            f"a {item.kind} has {len(item.responses)} responses, and must have {wanted}"
        )
    if item.scale not in (("thumbs", "stars") if item.kind == "single" else (None,)):
        raise ValueError(
            f"scale is {item.scale!r:.80}: a single response takes thumbs or stars, other kinds none"
        )
    if item.purpose not in ("work", "training", "gold"):
        raise ValueError(f"purpose is {item.purpose!r:.80}, and must be work, training or gold")
    if item.purpose != "work" and item.gold is None:
        raise ValueError(f"an item of purpose {item.purpose} has no gold answer: give gold")
    if item.gold is not None:
        answers.check_gold(item.kind, item.scale, len(item.responses), item.gold)
    if type(item.wanted) is not int or not 1 <= item.wanted <= 1000:
        raise ValueError(f"wanted is {item.wanted!r:.80}, and must be a number from 1 to 1000")
    if len(item.id) > LONGEST_ID:
        raise ValueError(f"id is {item.id!r:.80}..., and must have {LONGEST_ID} characters at most")
    if AWKWARD.search(item.id):
        raise ValueError(f"id is {item.id!r:.80}, and must be without NUL and lone surrogates")


def _check_types(item: Item) -> None:
    for name in ("kind", "scale", "purpose", "id", "reason", "question"):
        value = getattr(item, name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} is {value!r:.80}, and must be a text")
    if item.metadata is not None and not isinstance(item.metadata, Mapping):
        raise ValueError(f"metadata is {item.metadata!r:.80}, and must be an object")
    if isinstance(item.prompt, str):
        return
    if not isinstance(item.prompt, list) or not item.prompt:
        raise ValueError(
            f"prompt is {item.prompt!r:.80}, and must be a text, or a list of turns that is not empty"
        )
    for turn in item.prompt:
        if not isinstance(turn, Mapping) or not all(
            isinstance(turn.get(x), str) for x in ("role", "content")
        ):
            raise ValueError(
                f"prompt has the turn {turn!r:.80}, and a turn must have the texts role and content"
            )


def hash_of(item: Item, *but: str) -> str:
    """SHA-256 of an item's contents."""
    said = {k: v for k, v in dataclasses.asdict(item).items() if k not in ("id", *but)}
    if item.selection is None:  # as of items that were put before there were any
        said.pop("selection", None)
    try:
        text = json.dumps(said, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise ValueError(
            f"item {item.id or item.prompt!r:.80} cannot be written as JSON: {e}"
        ) from e
    return hashlib.sha256(text.encode()).hexdigest()
