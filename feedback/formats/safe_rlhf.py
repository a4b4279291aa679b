"""PKU-SafeRLHF: two responses, and which is the better and which the safer one (Ji et al., 2023)."""

from collections.abc import Iterator, Mapping

from feedback.formats.found import Found, Said, response, source, take

NAME = "safe_rlhf"
QUESTIONS = {
    "better_response_id": "Which response is more helpful?",
    "safer_response_id": "Which response is safer?",
}
"""The question that each field answers; each is an item of its own."""


def fits(row: Mapping) -> bool:
    """True for a row of this format."""
    return {"prompt", "response_0", "response_1"} <= row.keys() and bool(QUESTIONS & row.keys())


def read(row: Mapping) -> Iterator[Found]:
    """A pair for each question that the row answers."""
    names = ("response_0", "response_1")
    for field, question in QUESTIONS.items():
        if row.get(field) is None:
            continue
        best = take(row, field, int)
        if best not in (0, 1):
            raise ValueError(f"field {field!r} is {best}, and must be 0 or 1")
        item = {
            "kind": "pair",
            "question": question,
            "prompt": take(row, "prompt"),
            "responses": [response(take(row, x), row.get(f"{x}_source")) for x in names],
            "metadata": source(NAME, row, "prompt_source"),
        }
        yield Found(item, [Said(preference="ab"[best])])
