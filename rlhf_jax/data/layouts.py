"""Layouts of a row with a comparison of responses by people, and the comparisons in a row of each.

    {"prompt": ..., "responses": [...], "preference": 0}    our own; "tie" where neither is better
    {"prompt": ..., "responses": [a, b], "probability": .8}  the share of people for whom a is better
    {"prompt": ..., "responses": [...], "ranks": [2, 1, 2]}  a rank for each response, the least for the best
    {"chosen": ..., "rejected": ...}                        with "prompt", or whole dialogues (HH)
    {"text": ..., "label": 1}                               positive texts over negative ones

Prompts and responses may be messages, as in `dialogues.plain`. An empty prompt counts as none.
`ComparisonFields` names the fields of any other layout. A preference among K responses is the number of the
best one (which makes K - 1 comparisons, one over each of the others), or a list with a preference for each
of the K (K - 1) / 2 pairs, in the order 1v2, 1v3, ..., 2v3, ... . Several preference fields are votes. Ranks
make a comparison of every two responses whose ranks differ, and the K responses can be learned from as a
whole (`comparisons.encode_rankings`).

A probability that the first response is the better one makes a single comparison, of the likelier response
over the other, which is learned from both ways round by their shares. It is read in place of a preference,
and beside `chosen` and `rejected`, of which the first is `chosen`. Any row may have a weight.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_jax.bounds import Integer, Settings
from rlhf_jax.data.bad_records import BadRecord
from rlhf_jax.data.dialogues import Chat, plain
from rlhf_jax.data.sources import Row, field, field_names, texts
from rlhf_jax.data.splits import group_of, words

_ANSWER, _HUMAN = "\n\nAssistant:", "\n\nHuman:"
_TIE = "tie"


class Comparison(NamedTuple):
    """Two responses to one prompt; pairs with equal `group` stay on one side of a split.

    `ranking` is the key of the ranks that the pair is a part of, and empty for a pair alone. `probability` is
    that of `chosen` being the better one, from 1/2, where people are of two minds, to 1. `weight` is above 0.
    """

    prompt: str
    chosen: str
    rejected: str
    group: str
    ranking: str = ""
    probability: float = 1.0
    weight: float = 1.0

    @property
    def responses(self) -> tuple[str, ...]:
        """Both responses, the chosen one first."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class ComparisonFields(Settings):
    """Field names of a comparison; the first three settings take several names, separated by commas, and
    "a.b" is the field b within a."""

    prompt: str = "prompt"
    """Prompt fields, separated by commas and joined by newlines; empty ones are dropped."""
    responses: str = "responses"
    """Field that holds the list of responses, or one field per response, separated by commas."""
    preference: str = "preference"
    """Preference field; several fields, separated by commas, vote, and no majority is a tie."""
    ranks: str = "ranks"
    """Field that holds a list of numbers, one for each response, the least for the best and equal ones for a
    tie; read where a row has no preference."""
    first: Integer = 0
    """Number that stands for the first response in the preference field; one less is a tie."""
    probability: str = "probability"
    """Field of the probability, from 0 to 1, that the first of two responses is the better one; read in place
    of a preference where a row has it. Empty for none."""
    weight: str = "weight"
    """Field of a row's weight, 0 or more, beside others (1 where a row has none). Empty for none."""


def plain_row(row: Row, fields: ComparisonFields, chat: Chat) -> Row:
    """The row with texts in place of dialogues, in the fields that may hold a prompt or a response."""
    named = field_names(fields.responses)
    answers = ("chosen", "rejected", *(named if len(named) > 1 else ()), "response")
    return plain(
        row, chat, field_names(fields.prompt), answers, named[0] if len(named) == 1 else ""
    )


def shape_of(row: Row, fields: ComparisonFields) -> str:
    """The layout of a row; fields that the user named for responses or preference take precedence."""
    default = ComparisonFields()
    named = (fields.responses, fields.preference) != (default.responses, default.preference)
    responses, preference = ({*field_names(x)} for x in (fields.responses, fields.preference))
    if {*responses, fields.probability} <= row.keys():
        return "soft"
    if {*responses, fields.ranks} <= row.keys() and not preference & row.keys():
        return "ranked"
    if named or responses | preference <= row.keys():
        return "mapped"
    if {"chosen", "rejected"} <= row.keys():
        return "chosen"
    if {"text", "label"} <= row.keys():
        return "labelled"
    found = ", ".join(repr(key) for key in row) or "none"
    raise BadRecord(
        row.where,
        "a comparison needs the fields 'responses' and 'preference', 'probability' or 'ranks', or 'chosen' "
        "and 'rejected', or 'text' and 'label'",
        f", and the fields found are {found}: name yours with data.fields",
    )


def key_of(responses: Sequence[str]) -> str:
    """Key of responses without a prompt, independent of their order."""
    return "\n".join(sorted(map(words, responses)))


def _chosen(row: Row, fields: ComparisonFields) -> tuple[list[Comparison], int]:
    """The comparison of 'chosen' with 'rejected', whose order the row's probability may reverse."""
    pair = _dialogues(row, fields)
    return [_likelier(row, fields, pair) if fields.probability in row else pair], 0


def _dialogues(row: Row, fields: ComparisonFields) -> Comparison:
    """The field 'chosen' over 'rejected', less the prompt that they begin with."""
    chosen, rejected = field(row, "chosen", str), field(row, "rejected", str)
    prompt = _prompt(row, fields) if any(name in row for name in field_names(fields.prompt)) else ""
    if prompt:
        return Comparison(prompt, chosen, rejected, group=row.group or group_of(prompt))
    begins = lambda text: text.lstrip().startswith(_HUMAN.strip())
    if not all(begins(text) or _ANSWER in text for text in (chosen, rejected)):
        return Comparison("", chosen, rejected, group=key_of([chosen, rejected]))
    same = itertools.takewhile(lambda ab: ab[0] == ab[1], zip(chosen, rejected, strict=False))
    end = chosen[: len(list(same))].rfind(_ANSWER) + len(_ANSWER)
    if end < len(_ANSWER):
        raise BadRecord(
            row.where,
            "'chosen' and 'rejected' are dialogues, and do not begin with the same turns",
            f" up to {_ANSWER!r}: they must answer the same dialogue",
        )
    return Comparison(chosen[:end], chosen[end:], rejected[end:], group=group_of(chosen))


def _mapped(row: Row, fields: ComparisonFields) -> tuple[list[Comparison], int]:
    """The comparisons from one row's preferences, and its number of ties."""
    prompt, responses = _prompt(row, fields), _responses(row, fields)
    group = (row.group or group_of(prompt)) if prompt else key_of(responses)
    names, k, first = field_names(fields.preference), len(responses), fields.first
    pairs = list(itertools.combinations(range(k), 2))
    if not names:
        raise ValueError(
            "data.fields.preference is empty: name the field that holds the preference"
        )
    votes = [_value(row, name) for name in names]
    if all(isinstance(vote, list) for vote in votes):
        for name, vote in zip(names, votes, strict=True):
            if len(vote) != len(pairs):
                raise BadRecord(
                    row.where,
                    f"field {name!r} must hold {len(pairs)} preferences",
                    f", one for each pair of {k} responses, and holds {len(vote)}",
                )
        won: list[tuple[int, int] | None] = []  # (better, worse), None for a tie
        for at, pair in enumerate(pairs):
            best = _majority(
                [_choice(row, n, v[at], first, 2) for n, v in zip(names, votes, strict=True)]
            )
            won.append(None if best is None else (pair[best], pair[1 - best]))
    else:
        best = _majority([_choice(row, n, v, first, k) for n, v in zip(names, votes, strict=True)])
        won = [None] if best is None else [(best, other) for other in range(k) if other != best]
    comparisons = [
        Comparison(prompt, responses[pair[0]], responses[pair[1]], group) for pair in won if pair
    ]
    return comparisons, won.count(None)


def _soft(row: Row, fields: ComparisonFields) -> tuple[list[Comparison], int]:
    """The comparison of two responses of which the first is better with a probability."""
    prompt, responses = _prompt(row, fields), _responses(row, fields)
    if len(responses) != 2:
        raise BadRecord(
            row.where,
            f"field {fields.probability!r} is about two responses",
            f", and there are {len(responses)}",
        )
    group = (row.group or group_of(prompt)) if prompt else key_of(responses)
    first, second = responses
    return [_likelier(row, fields, Comparison(prompt, first, second, group))], 0


def _likelier(row: Row, fields: ComparisonFields, pair: Comparison) -> Comparison:
    """The pair with the response first that is the better one by the row's probability of the first."""
    p = field(row, fields.probability, float)
    if not 0 <= p <= 1:
        raise BadRecord(
            row.where,
            f"field {fields.probability!r} must be a number from 0 to 1",
            f", and is {p!r}",
        )
    if p < 0.5:
        pair, p = pair._replace(chosen=pair.rejected, rejected=pair.chosen), 1 - p
    return pair._replace(probability=float(p))


def _ranked(row: Row, fields: ComparisonFields) -> tuple[list[Comparison], int]:
    """A comparison of every two responses whose ranks differ, and the number of pairs whose ranks do not."""
    prompt, responses = _prompt(row, fields), _responses(row, fields)
    group = (row.group or group_of(prompt)) if prompt else key_of(responses)
    ranks, k = field(row, fields.ranks, list), len(responses)
    numbers = [isinstance(x, int | float) and not isinstance(x, bool) and x == x for x in ranks]
    if len(ranks) != k or not all(numbers):
        raise BadRecord(
            row.where,
            f"field {fields.ranks!r} must hold a number for each response",
            f", which are {k}, and is {ranks!r}",
        )
    if len(set(responses)) < k:
        raise BadRecord(
            row.where,
            f"{fields.responses!r} holds the same text twice",
            ": rank different responses",
        )
    pairs = [(i, j) for i, j in itertools.permutations(range(k), 2) if ranks[i] < ranks[j]]
    comparisons = [
        Comparison(prompt, responses[i], responses[j], group, ranking=row.where) for i, j in pairs
    ]
    return comparisons, k * (k - 1) // 2 - len(pairs)


def _prompt(row: Row, fields: ComparisonFields) -> str:
    """The text of the prompt; "" where its fields are blank or null, which counts as no prompt."""
    return texts(row, field_names(fields.prompt))


def _responses(row: Row, fields: ComparisonFields) -> list[str]:
    """The texts to compare."""
    # an answer may have been stored as a number or as true (PandaLM has six): it is read as that word
    names = field_names(fields.responses)
    if len(names) == 1:
        values = field(row, names[0], list)
    else:
        values = [row[name] if name in row else field(row, name, str) for name in names]
    responses = [json.dumps(v) if isinstance(v, bool | int | float) else v for v in values]
    if len(responses) < 2 or not all(isinstance(response, str) for response in responses):
        reason = f"{fields.responses!r} must give two or more responses, all of them texts"
        raise BadRecord(row.where, reason)
    return responses


def _value(row: Row, name: str) -> Any:
    """The preference in the row: a whole number, "tie", or a list of these."""
    value = row.get(name)
    for kind in (list, str):
        if isinstance(value, kind):
            return value
    return field(row, name, int)


def _choice(row: Row, name: str, value: Any, first: int, k: int) -> int | None:
    """Index of the preferred response among `k`, None for a tie."""
    if value == _TIE:
        return None
    if isinstance(value, float) and value.is_integer():  # pandas writes 1.0
        value = int(value)
    number = value - first if isinstance(value, int) and not isinstance(value, bool) else None
    if number == -1 and first > 0:
        return None
    if number is None or not 0 <= number < k:
        ties = f"{_TIE!r}" + (f" or {first - 1}" if first > 0 else "")
        raise BadRecord(
            row.where,
            f"field {name!r} must be a number from {first} to {first + k - 1}",
            f", or {ties} for a tie, and is {value!r}",
        )
    return number


def _majority(votes: list[int | None]) -> int | None:
    """The vote with the most supporters (ties are votes too); a tie where no vote leads alone."""
    (best, count), *others = Counter(votes).most_common()
    return None if others and others[0][1] == count else best


SHAPES = {"chosen": _chosen, "mapped": _mapped, "ranked": _ranked, "soft": _soft}
"""Readers of (row, fields) -> (its comparisons, the number of its ties), by the layout of the row."""
