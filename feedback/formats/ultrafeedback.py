"""UltraFeedback: four completions of an instruction, scored by a model (Cui et al., 2023)."""

from collections.abc import Iterator, Mapping

from feedback.formats.found import Found, Said, ranks_of, response, source, take

NAME = "ultrafeedback"


def fits(row: Mapping) -> bool:
    """True for a row of this format."""
    return {"instruction", "completions"} <= row.keys()


def read(row: Mapping) -> Iterator[Found]:
    """A ranking by the mean score of all aspects; the overall score has known errors, and comes second."""
    said = take(row, "completions", list)
    item = {
        "kind": "pair" if len(said) == 2 else "ranking",
        "prompt": take(row, "instruction"),
        "responses": [response(take(x, "response"), x.get("model")) for x in said],
        "metadata": source(NAME, row, "source"),
    }
    scores = [x.get("fine-grained_score", x.get("overall_score")) for x in said]
    if len(said) < 2 or len(said) > 8:
        return
    if not all(isinstance(x, int | float) for x in scores):
        yield Found(item)
    elif len(said) == 2:
        a, b = ranks_of(scores)
        yield Found(item, [Said(preference="a" if a < b else "b" if b < a else "tie")])
    else:
        yield Found(item, [Said(ranks=ranks_of(scores))])
