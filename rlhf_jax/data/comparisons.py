"""Comparisons of responses by people, read from rows of several layouts, split, and encoded as arrays.

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
whole (`encode_rankings`).

A probability that the first response is the better one makes a single comparison, of the likelier response
over the other, which is learned from both ways round by their shares. It is read in place of a preference,
and beside `chosen` and `rejected`, of which the first is `chosen`. Any row may have a weight.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from transformers import PreTrainedTokenizerBase

from rlhf_jax.batches import Comparisons, Rankings, Sequences
from rlhf_jax.bounds import Integer, Settings
from rlhf_jax.data.bad_records import BadRecord, BadRecords
from rlhf_jax.data.demonstrations import encode_demonstrations
from rlhf_jax.data.dialogues import NO_TEMPLATE, Chat, plain
from rlhf_jax.data.sources import Row, field, field_names, paths, reached, read, texts
from rlhf_jax.data.splits import group_of, words
from rlhf_jax.data.transcripts import Turns
from rlhf_jax.data.weights import tell_weightless, weight_of

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


def read_comparisons(
    source: str | Sequence[str],
    fields: ComparisonFields | None = None,
    seed: int = 0,
    chat: Chat = NO_TEMPLATE,
    bad: BadRecords | None = None,
) -> tuple[list[Comparison], int]:
    """The comparisons of a source (as in `sources.read`), and how many ties were dropped.

    Each row has its own shape, as above; rows of weight 0 are left out, and their number is printed. `group`
    is `splits.group_of` the prompt; the first human turn where it is a dialogue or two dialogues are
    compared; and the texts themselves, in any order, where there is no prompt. Of two dialogues, the prompt
    is what they share up to the last "\\n\\nAssistant:". Labelled texts are matched at random by `seed`, each
    used once and repeated ones dropped, until one label runs out; their weights multiply. Raises BadRecord,
    in one sentence that names path and line, for a row of no known shape, unless `bad` skips it, and
    ValueError, in one that names the source, where there is nothing to compare: ties alone, one label alone,
    or two equal responses in each pair.
    """
    fields, bad = fields or ComparisonFields(), bad or BadRecords()
    comparisons, labelled, ties, weightless = [], {0: {}, 1: {}}, 0, 0
    deep = paths(fields)
    for row in read(source, bad=bad):
        with bad:
            row = _plain(reached(row, deep), fields, chat)
            shape, weight = _shape(row, fields), weight_of(row, fields.weight)
            if shape == "labelled":
                label = field(row, "label", bool if isinstance(row["label"], bool) else int)
                if label not in labelled:
                    raise BadRecord(row.where, "field 'label' must be 0 or 1", f", and is {label}")
                text = field(row, "text", str)
                if weight:
                    labelled[label].setdefault(text, weight)
                    bad.keep(row.where, "", [text])
            else:
                found, dropped = SHAPES[shape](row, fields)
                if weight:
                    comparisons += [pair._replace(weight=weight) for pair in found]
                    ties += dropped
                    for pair in found:
                        bad.keep(row.where, pair.prompt, pair.responses)
            weightless += not weight
    bad.check([*comparisons, *labelled[0], *labelled[1], *range(ties + weightless)], source)
    tell_weightless(weightless, source)
    comparisons += _matched(labelled[1], labelled[0], seed)
    if all(pair.probability == 0.5 for pair in comparisons):
        tied, texts = ties + len(comparisons), [len(labelled[label]) for label in (1, 0)]
        counts = f"there are {texts[0]} texts with label 1 and {texts[1]} with label 0"
        why = f"all {tied} preferences are ties" if tied else counts
        why = "every row has a weight of 0" if weightless and not tied and not any(texts) else why
        raise ValueError(
            f"{source}: there is nothing to compare, for {why}: give rows in which one response is better"
        )
    if all(words(c.chosen) == words(c.rejected) for c in comparisons):
        raise ValueError(
            f"{source}: in each of the {len(comparisons)} pairs both responses are the same text, and "
            "nothing can be learned: give responses that differ"
        )
    return comparisons, ties


def encode_comparisons(
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[Comparison],
    prompt_length: int,
    length: int,
    turns: Turns | None = None,
) -> Comparisons:
    """Both sides, encoded as by `encode_demonstrations`: with an end token, unless a response was
    truncated.

    Pairs keep their order. Those that differ only beyond `length` become identical: count them with
    `identical`.
    """
    prompts = [c.prompt for c in comparisons]
    chosen, rejected = [c.chosen for c in comparisons], [c.rejected for c in comparisons]
    return Comparisons(
        chosen=encode_demonstrations(tokenizer, prompts, chosen, prompt_length, length, turns),
        rejected=encode_demonstrations(tokenizer, prompts, rejected, prompt_length, length, turns),
        weight=np.array([c.weight for c in comparisons], np.float32),
        probability=np.array([c.probability for c in comparisons], np.float32),
    )


def identical(comparisons: Comparisons) -> Bool[np.ndarray, " N"]:
    """Mask of pairs with equal tokens on both sides, from which nothing can be learned or measured."""
    a, b = comparisons.sides
    same_mask = np.all(a.attention_mask == b.attention_mask, axis=1)
    return same_mask & np.all((a.tokens == b.tokens) | ~a.attention_mask, axis=1)


def encode_rankings(
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[Comparison],
    prompt_length: int,
    length: int,
) -> Rankings:
    """The responses of each ranking side by side [N, K, ...], encoded as by `encode_demonstrations`.

    The pairs of one ranking make one row, and a pair alone makes a row of two; of a probability below 1, two
    rows, one for each order, which share its weight. The rank of a response is the number of responses that
    are better; K is the most responses of a row.
    """
    rows: dict[Any, tuple[str, Counter, float]] = {}
    for n, pair in enumerate(_both_ways(comparisons)):
        new = pair.prompt, Counter(), pair.weight
        worse_than = rows.setdefault(pair.ranking or n, new)[1]
        worse_than.update({pair.chosen: 0, pair.rejected: 1})
    k = max(len(ranked) for _, ranked, _ in rows.values())
    prompts, responses, rank = [], [], np.full((len(rows), k), -1, np.int32)
    for row, (prompt, ranked, _) in enumerate(rows.values()):
        said = list(ranked)
        rank[row, : len(said)] = [ranked[response] for response in said]
        prompts += [prompt] * k
        responses += said + said[:1] * (k - len(said))
    flat = encode_demonstrations(tokenizer, prompts, responses, prompt_length, length)
    return Rankings(
        responses=Sequences(*(x.reshape(len(rows), k, -1) for x in flat)),
        rank=rank,
        weight=np.array([weight for _, _, weight in rows.values()], np.float32),
    )


def _both_ways(comparisons: Sequence[Comparison]) -> Iterator[Comparison]:
    """Each pair, or where its probability is below 1 one pair for each order, which share its weight."""
    for pair in comparisons:
        yield pair._replace(weight=pair.weight * pair.probability)
        if pair.probability < 1:
            turned = pair._replace(chosen=pair.rejected, rejected=pair.chosen)
            yield turned._replace(weight=pair.weight * (1 - pair.probability))


def _plain(row: Row, fields: ComparisonFields, chat: Chat) -> Row:
    """The row with texts in place of dialogues, in the fields that may hold a prompt or a response."""
    named = field_names(fields.responses)
    answers = ("chosen", "rejected", *(named if len(named) > 1 else ()), "response")
    return plain(
        row, chat, field_names(fields.prompt), answers, named[0] if len(named) == 1 else ""
    )


def _shape(row: Row, fields: ComparisonFields) -> str:
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


def _matched(positive: dict[str, float], negative: dict[str, float], seed: int) -> list[Comparison]:
    """Positive texts over negative ones, in random pairs; their weights multiply."""
    rng = np.random.default_rng(seed)
    texts = [[*side] for side in (positive, negative)]
    rows = zip(*(rng.permutation(len(side)) for side in texts), strict=False)
    pairs = [(texts[0][i], texts[1][j]) for i, j in rows]
    return [
        Comparison("", good, bad, _texts([good, bad]), weight=positive[good] * negative[bad])
        for good, bad in pairs
    ]


def _texts(responses: Sequence[str]) -> str:
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
        return Comparison("", chosen, rejected, group=_texts([chosen, rejected]))
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
    group = (row.group or group_of(prompt)) if prompt else _texts(responses)
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
    group = (row.group or group_of(prompt)) if prompt else _texts(responses)
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
    group = (row.group or group_of(prompt)) if prompt else _texts(responses)
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
