"""Comparisons of responses by people: read from rows of any of the `layouts`, and encoded as arrays.

A preference among several responses makes several comparisons. Ranks make a comparison of every two responses
whose ranks differ, and the responses can be learned from as a whole (`encode_rankings`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from rlhf_jax.batches import Comparisons, Rankings, Sequences
from rlhf_jax.data.bad_records import BadRecord, BadRecords
from rlhf_jax.data.demonstrations import encode_demonstrations
from rlhf_jax.data.dialogues import NO_TEMPLATE, Chat
from rlhf_jax.data.layouts import (
    SHAPES,
    Comparison,
    ComparisonFields,
    key_of,
    plain_row,
    shape_of,
)
from rlhf_jax.data.sources import field, paths, reached, read
from rlhf_jax.data.splits import words
from rlhf_jax.data.transcripts import Turns
from rlhf_jax.data.weights import tell_weightless, weight_of

if TYPE_CHECKING:
    import transformers  # which takes a second


def read_comparisons(
    source: str | Sequence[str],
    fields: ComparisonFields | None = None,
    seed: int = 0,
    chat: Chat = NO_TEMPLATE,
    bad: BadRecords | None = None,
) -> tuple[list[Comparison], int]:
    """The comparisons of a source (as in `sources.read`), and how many ties were dropped.

    Each row has its own layout; rows of weight 0 are left out, and their number is printed. `group`
    is `splits.group_of` the prompt; the first human turn where it is a dialogue or two dialogues are
    compared; and the texts themselves, in any order, where there is no prompt. Of two dialogues, the prompt
    is what they share up to the last "\\n\\nAssistant:". Labelled texts are matched at random by `seed`, each
    used once and repeated ones dropped, until one label runs out; their weights multiply. Raises BadRecord,
    in one sentence that names path and line, for a row of no known layout, unless `bad` skips it, and
    ValueError, in one that names the source, where there is nothing to compare: ties alone, one label alone,
    or two equal responses in each pair.
    """
    fields, bad = fields or ComparisonFields(), bad or BadRecords()
    comparisons, labelled, ties, weightless = [], {0: {}, 1: {}}, 0, 0
    deep = paths(fields)
    for row in read(source, bad=bad):
        with bad:
            row = plain_row(reached(row, deep), fields, chat)
            shape, weight = shape_of(row, fields), weight_of(row, fields.weight)
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
    tokenizer: "transformers.PreTrainedTokenizerBase",
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
    tokenizer: "transformers.PreTrainedTokenizerBase",
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


def _matched(positive: dict[str, float], negative: dict[str, float], seed: int) -> list[Comparison]:
    """Positive texts over negative ones, in random pairs; their weights multiply."""
    rng = np.random.default_rng(seed)
    texts = [[*side] for side in (positive, negative)]
    rows = zip(*(rng.permutation(len(side)) for side in texts), strict=False)
    pairs = [(texts[0][i], texts[1][j]) for i, j in rows]
    return [
        Comparison("", good, bad, key_of([good, bad]), weight=positive[good] * negative[bad])
        for good, bad in pairs
    ]
