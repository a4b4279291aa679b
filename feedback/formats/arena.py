"""Arena battles: two models' dialogues with one person, and who won (Zheng et al., 2023)."""

from collections.abc import Iterator, Mapping

from feedback.formats.dialogues import split_messages
from feedback.formats.found import Found, Said, response, source, take

NAME = "arena"
WINNERS = {
    "model_a": "a",
    "model_b": "b",
    "tie": "tie",
    "tie (bothbad)": "both_bad",
    "both_bad": "both_bad",
}
"""What each winner comes to: two bad answers are no tie."""


def fits(row: Mapping) -> bool:
    """True for a battle."""
    return {"conversation_a", "conversation_b", "winner"} <= row.keys()


def read(row: Mapping) -> Iterator[Found]:
    """A pair of what the models said after the common beginning of their dialogues."""
    both = (take(row, f"conversation_{x}", list) for x in "ab")
    prompt, *texts = split_messages(*both)
    winner = take(row, "winner")
    if winner not in WINNERS:
        raise ValueError(f"field 'winner' is {winner!r}, and must be {', '.join(WINNERS)}")
    judge = row.get("judge", row.get("evaluation_session_id"))
    item = {
        "kind": "pair",
        "prompt": prompt,
        "responses": [
            response(text, row.get(f"model_{x}")) for x, text in zip("ab", texts, strict=True)
        ],
        "metadata": source(NAME, row, "question_id", "id", "language"),
    }
    yield Found(item, [Said(f"{NAME}: {judge}" if judge else "", WINNERS[winner])])
