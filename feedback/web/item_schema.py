"""The JSON Schema of items, as the API takes them: what it admits can be put, and nothing else."""

from typing import Any

from feedback.store import records

TEXT = {"type": ["string", "null"]}
OBJECT = {"type": ["object", "null"]}
NULL = {"type": "null"}
TURN = {
    "type": "object",
    "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
    "required": ["role", "content"],
}
RESPONSE = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"text": {"type": "string"}, "policy": TEXT, "sampling": OBJECT},
            "required": ["text"],
            "additionalProperties": False,
        },
    ]
}
NAME = {
    "type": "string",
    "minLength": 1,
    "maxLength": records.LONGEST_ID,
    "pattern": r"^[^\u0000]*$",
}
SELECTION = {
    "type": ["object", "null"],
    "properties": {
        "round": NAME,
        "strategy": NAME,
        "score": {
            "type": ["number", "null"],
            "minimum": -records.LARGEST,
            "maximum": records.LARGEST,
        },
        "probability": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "model": {**NAME, "type": ["string", "null"]},
    },
    "required": ["round", "strategy"],
    "additionalProperties": False,
    "description": "How the item was chosen to be asked about.",
}
COMMON = {
    "id": {
        **TEXT,
        "maxLength": records.LONGEST_ID,
        "pattern": r"^[^\u0000]*$",
        "description": "Empty: a hash of the contents.",
    },
    "prompt": {"anyOf": [{"type": "string"}, {"type": "array", "items": TURN, "minItems": 1}]},
    "question": TEXT,
    "reason": {**TEXT, "description": "Shown after a training answer."},
    "metadata": OBJECT,
    "selection": SELECTION,
    "wanted": {"type": ["integer", "null"], "minimum": 1, "maximum": 1000},
}


def item(
    kind: str, n: int, gold: dict[str, Any], scale: str | None = None, named: tuple = ()
) -> dict[str, Any]:
    """The schema of items of one kind with `n` responses; those of training and hidden gold need gold.

    The fields `named` have to be there; without them it would be another kind.
    """
    others = {"kind": {"enum": [kind, None]}, "scale": {"enum": [scale, None]}}
    fields = {
        **COMMON,
        **others,
        **{x: {"const": {"kind": kind, "scale": scale}[x]} for x in named},
        "responses": {"type": "array", "items": RESPONSE, "minItems": n, "maxItems": n},
    }
    needed = ["prompt", "responses", *named]
    work = {"purpose": {"enum": ["work", None]}, "gold": {"anyOf": [gold, NULL]}}
    known = {"purpose": {"enum": ["training", "gold"]}, "gold": gold}
    shape = {"type": "object", "additionalProperties": False}
    return {
        "title": f"{kind} of {n}" if n > 1 else f"single, {scale}",
        "anyOf": [
            {**shape, "properties": {**fields, **work}, "required": needed},
            {**shape, "properties": {**fields, **known}, "required": [*needed, "purpose", "gold"]},
        ],
    }


def ranks(n: int) -> dict[str, Any]:
    """The schema of `n` ranks, of which one is 1."""
    rank = {"type": "integer", "minimum": 1, "maximum": n}
    return {"type": "array", "items": rank, "minItems": n, "maxItems": n, "contains": {"const": 1}}


ITEM = {
    "anyOf": [
        item("pair", 2, {"enum": ["a", "b", "tie", "both_bad"]}),
        item("single", 1, {"type": "integer", "minimum": 0, "maximum": 1}, "thumbs"),
        item("single", 1, {"type": "integer", "minimum": 1, "maximum": 5}, "stars", ("scale",)),
        item("ranking", 2, ranks(2), None, ("kind",)),
        *(item("ranking", n, ranks(n)) for n in range(3, 9)),
    ]
}
ITEMS = {"type": "array", "items": ITEM, "maxItems": 10_000}
"""The schema of the body of PUT /api/items."""
