"""Single responses with a label or a score, read from rows, and encoded as arrays.

    {"prompt": ..., "response": ..., "rating": 4}    a number; "score" and "label" are other names of it
    {"text": ..., "label": 1}                        a text without a prompt

Prompts and responses may be messages, as in `dialogues.plain`. A row may have a weight. `RatingFields` names
other fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from rlhf_jax.batches import Ratings
from rlhf_jax.bounds import Settings
from rlhf_jax.data.bad_records import BadRecord, BadRecords
from rlhf_jax.data.demonstrations import encode_demonstrations
from rlhf_jax.data.dialogues import NO_TEMPLATE, Chat, plain
from rlhf_jax.data.sources import Row, field, field_names, paths, reached, read, texts
from rlhf_jax.data.splits import group_of
from rlhf_jax.data.weights import tell_weightless, weight_of

if TYPE_CHECKING:
    import transformers  # which takes a second

LARGEST = 1e30
"""Largest score in size, which float32 can still standardise."""


class Rating(NamedTuple):
    """A response to a prompt and its score; ratings with equal `group` stay on one side of a split."""

    prompt: str
    response: str
    score: float
    group: str
    weight: float = 1.0

    @property
    def responses(self) -> tuple[str, ...]:
        """The one response."""
        return (self.response,)


@dataclass(frozen=True)
class RatingFields(Settings):
    """Field names of a rating; "a.b" is the field b within a."""

    prompt: str = "prompt"
    """Prompt fields, separated by commas and joined by newlines; empty ones are dropped."""
    response: str = "response"
    """Field of the response to the prompt."""
    text: str = "text"
    """Field of a text without a prompt, for rows without a response."""
    score: str = "rating,score,label"
    """Fields of the score, separated by commas, of which each row has exactly one: a number, or true or
    false."""
    weight: str = "weight"
    """Field of a row's weight, 0 or more, beside others (1 where a row has none). Empty for none."""


class Scale(NamedTuple):
    """The meaning of the rewards that a model of ratings gives.

    For "regression", mean + deviation x reward is a score; for "binary" it is the log-odds of a good label.
    """

    kind: Literal["binary", "regression"]
    mean: float
    deviation: float


def read_ratings(
    source: str | Sequence[str],
    fields: RatingFields | None = None,
    chat: Chat = NO_TEMPLATE,
    bad: BadRecords | None = None,
) -> list[Rating]:
    """The ratings of a source (as in `sources.read`), in order; a repeated one counts twice.

    Rows of weight 0 are left out, and their number is printed. `group` is `splits.group_of` the prompt, or of
    the text where there is no prompt. Raises BadRecord, in one sentence that names path and line, for a row
    without a response or a finite score, unless `bad` skips it, and ValueError, in one that names the source,
    where all scores are equal.
    """
    fields, found, bad = fields or RatingFields(), [], bad or BadRecords()
    names, deep, weightless = field_names(fields.prompt), paths(fields), 0
    for row in read(source, bad=bad):
        with bad:
            given = row.keys()
            row = plain(reached(row, deep), chat, names, (fields.response,), several="")
            if fields.response in row:
                prompt, response = texts(row, names), fields.response
            elif fields.text in row:
                prompt, response = "", fields.text
            else:
                raise BadRecord(
                    row.where,
                    f"a rating needs the field {fields.response!r} or {fields.text!r}",
                    f", and the fields found are {', '.join(map(repr, given)) or 'none'}: name yours with "
                    "data.ratings_fields",
                )
            said = field(row, response, str)
            group = row.group if prompt and row.group else group_of(prompt or said)
            score, weight = _score(row, field_names(fields.score)), weight_of(row, fields.weight)
            if weight:
                found.append(Rating(prompt, said, score, group, weight))
                bad.keep(row.where, prompt, [said])
            weightless += not weight
    bad.check([*found, *range(weightless)], source)
    tell_weightless(weightless, source)
    if not found:
        raise ValueError(f"{source}: every row has a weight of 0, and nothing can be learned")
    if len({rating.score for rating in found}) < 2:
        raise ValueError(
            f"{source}: each of the {len(found)} scores is {found[0].score:g}, and nothing can be learned: "
            "give responses of which some are rated better than others"
        )
    return found


def scale_of(
    scores: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray | None = None
) -> Scale:
    """The scale of rewards that these scores teach.

    Scores from 0 to 1 are "binary": labels, or shares of votes, whose log-odds are learned as they are.
    Other scores are standardised by their mean and standard deviation, in which each counts by its weight.
    Raises ValueError where all are equal.
    """
    mean = np.average(scores, weights=weights)
    deviation = float(np.sqrt(np.average((np.asarray(scores) - mean) ** 2, weights=weights)))
    if min(scores) == max(scores):
        raise ValueError(
            f"each of the {len(scores)} ratings to learn from is {scores[0]:g}: give more ratings"
        )
    if min(scores) >= 0 and max(scores) <= 1:
        return Scale("binary", 0.0, 1.0)
    return Scale("regression", float(mean), deviation)


def check_alike(parts: Sequence[Sequence[float]]):
    """Raises ValueError where parts of the scores teach rewards of different kinds; empty parts are alike."""
    if len({scale_of(scores).kind for scores in parts if scores}) > 1:
        raise ValueError(
            "data.ratings: the scores of one half are all from 0 to 1, and those of the other are not: give "
            "more ratings"
        )


def encode_ratings(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    ratings: Sequence[Rating],
    prompt_length: int,
    length: int,
    scale: Scale,
) -> Ratings:
    """Responses, encoded as by `encode_demonstrations`, and scores less the scale's mean, in deviations."""
    prompts, responses = [x.prompt for x in ratings], [x.response for x in ratings]
    scores = np.array([x.score for x in ratings])
    return Ratings(
        responses=encode_demonstrations(tokenizer, prompts, responses, prompt_length, length),
        score=((scores - scale.mean) / scale.deviation).astype(np.float32),
        weight=np.array([x.weight for x in ratings], np.float32),
    )


def _score(row: Row, names: list[str]) -> float:
    """The number in the one field of `names` that the row has."""
    found = [name for name in names if name in row]
    if len(found) != 1:
        keys = ", ".join(repr(key) for key in found or row) or "none"
        raise BadRecord(
            row.where,
            f"a rating needs one score, in the field {' or '.join(map(repr, names))}",
            f", and the fields {'with a score' if found else 'found'} are {keys}: name yours with "
            "data.ratings_fields.score",
        )
    value = row[found[0]]
    value = float(value) if isinstance(value, bool) else field(row, found[0], float)
    if not abs(value) <= LARGEST:
        raise BadRecord(
            row.where,
            f"field {found[0]!r} must be a number of at most {LARGEST:g} in size",
            ", and is not",
        )
    return float(value)
