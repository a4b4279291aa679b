"""Agreement, people, position and policies in people's judgements of pairs, as one JSON object.

    summary(rows)       # rows of a raw export

The owner's page and `launch.py feedback-report` show these numbers. Each follows from the raw export.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.stats import binomtest

from rlhf_jax.people import agreement, bradley_terry, reliability
from rlhf_jax.people.bradley_terry import Contests
from rlhf_jax.people.judgements import Judgements, from_raw, work

PARTS = 10
"""Parts of equal size into which the time of a curve is cut."""
FEW = 8
"""People under whom intervals over people are rough."""


def questions(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The questions that the judged pairs ask; an empty one is the page's own."""
    return sorted({x["item"]["question"] or "" for x in rows if x["item"]["kind"] == "pair"})


def summary(rows: Iterable[Mapping[str, Any]], question: str | None = None) -> dict[str, Any]:
    """The numbers of a raw export; NaN, which JSON has not, is null.

    Raises ValueError for rows that are no raw export, and, with their list, where pairs ask several questions
    and `question` names none: answers to different questions are never mixed.

    `agreement.degree` is ordinal alpha on the five steps, `agreement.side` nominal alpha on who is better
    (a tie is a side), each with an interval over items. `policies` has the strengths by Bradley-Terry, with
    two-way intervals by prompt and person, where responses of several named policies were compared. Both
    leave out the `chosen` judgements, of pairs that a strategy chose by a score, since those are no sample.
    """
    rows = list(rows)
    from_raw(rows)  # which refuses what is no raw export
    asked = questions(rows)
    if question is None and len(asked) > 1:
        raise ValueError(
            f"the pairs ask {len(asked)} questions, {', '.join(map(repr, asked))}: name one"
        )
    rows = [x for x in rows if question in (None, x["item"]["question"] or "")]
    judged = from_raw(rows)
    worked = work(judged)
    sample = [x for x in rows if not _chosen_by_score(x)]
    drawn = work(from_raw(sample))
    side, steps = ~np.isnan(drawn.first), ~np.isnan(drawn.degree)
    found = {
        "judgements": len(worked.item),
        "chosen": len(worked.item) - len(drawn.item),
        "items": len(np.unique(worked.item)),
        "people": [_person(x) for x in reliability.people(judged)],
        "both_bad": int(np.isnan(worked.first).sum()),
        "ties": int(np.sum(worked.first == 0.5)),
        "agreement": {
            "degree": _alpha(drawn.item[steps], drawn.degree[steps], "ordinal"),
            "side": _alpha(drawn.item[side], drawn.first[side], "nominal"),
        },
        "position": _position(worked),
        "over_time": _over_time(worked),
        "policies": policies(sample),
        "policies_at_equal_length": policies(sample, length=True),
    }
    return _json(found)


def _chosen_by_score(x: Mapping[str, Any]) -> bool:
    """True for a judgement of a pair that a strategy chose by its score, and did not draw."""
    selection = x["item"].get("selection")
    return selection is not None and selection["probability"] is None


def _alpha(items, labels, level) -> dict[str, float]:
    return agreement.alpha_interval(items, labels, level)._asdict()


def _person(x: reliability.Person) -> dict[str, Any]:
    shares = {
        name: {"k": share.k, "n": share.n, "mean": share.mean, "interval": list(share.interval())}
        for name, share in (
            *(("position", x.position), ("consensus", x.consensus), ("gold", x.gold)),
            *(("self", x.self), ("first_half", x.halves[0]), ("second_half", x.halves[1])),
        )
    }
    return {
        "name": x.name,
        "judged": x.judged,
        "accuracy": x.accuracy,
        **shares,
        "length": x.length,
        "seconds": x.seconds,
        "p_values": x.p_values,
        "flags": list(x.flags),
    }


def _position(worked: Judgements) -> dict[str, Any]:
    """How often the response shown first was chosen, and the exact test that it is half of the time."""
    placed = worked.chosen_first[(worked.chosen_first == 0) | (worked.chosen_first == 1)]
    k, n = int(placed.sum()), len(placed)
    low, high = reliability.Share(k, n).interval()
    p = float(binomtest(k, n).pvalue) if n else math.nan
    return {"first": k, "decided": n, "low": low, "high": high, "p": p}


def _over_time(worked: Judgements) -> list[dict[str, Any]]:
    """Median seconds, and the share of votes that the item's other votes agree with, in parts of the time."""
    total = np.bincount(worked.item, np.nan_to_num(worked.first, nan=0.5) - 0.5, len(worked.items))
    others = total[worked.item] - (np.nan_to_num(worked.first, nan=0.5) - 0.5)
    decided = ((worked.first == 0) | (worked.first == 1)) & (others != 0)
    agreed = (others > 0) == (worked.first == 1)
    found = []
    for part in np.array_split(np.arange(len(worked.item)), PARTS):
        if len(part):
            told, seconds = decided[part], worked.seconds[part]
            seconds = seconds[~np.isnan(seconds)]
            found.append({
                "from": float(worked.at[part[0]]),
                "to": float(worked.at[part[-1]]),
                "judgements": len(part),
                "seconds": float(np.median(seconds)) if len(seconds) else math.nan,
                "agreed": int(agreed[part][told].sum()),
                "of": int(told.sum()),
            })  # fmt: skip
    return found


def policies(rows: Iterable[Mapping[str, Any]], length: bool = False) -> dict[str, Any] | None:
    """Who is better, by Bradley-Terry with an order term, from the pairs of two named policies.

    "Both are bad" is counted apart. With `length` the model has a length term, so that its strengths and win
    rates are those of responses of equal length. None where no two named policies were compared.
    """
    votes = [x for x in rows if _between_policies(x)]
    told = [x for x in votes if x["preference"] != "both_bad"]
    if not told:
        return None
    names = sorted({y["policy"] for x in votes for y in x["item"]["responses"]})
    number = {name: n for n, name in enumerate(names)}
    a, b = (np.array([number[x["item"]["responses"][i]["policy"]] for x in told]) for i in (0, 1))
    words = np.array([[len(y["text"].split()) for y in x["item"]["responses"]] for x in told])
    gap = (words[:, 0] - words[:, 1]).astype(np.float64)
    scale = gap.std() or 1.0
    contests = Contests(
        a,
        b,
        np.array([{"a": 1.0, "b": 0.0, "tie": 0.5}[x["preference"]] for x in told]),
        order=np.array([_order(x) for x in told]),
        length=gap / scale if length else None,
    )
    fitted = bradley_terry.fit(contests, names)
    prompts = _numbered(str(x["item"]["prompt"]) for x in told)
    people = _numbered(x["annotator"] for x in told)
    wide = bradley_terry.two_way_covariance(fitted, prompts, people)
    t = bradley_terry.quantile(prompts, people)
    reference = next((n for n, name in enumerate(names) if name not in fitted.loose), 0)
    strengths = fitted.strength_against(reference)
    errors = np.nan_to_num(fitted.errors_against(reference, wide), nan=np.inf)
    errors = np.where(np.arange(len(names)) == reference, 0.0, errors) * (t if t < np.inf else 1.0)
    bad = {name: 0 for name in names}
    for x in votes:
        if x["preference"] == "both_bad":
            for y in x["item"]["responses"]:
                bad[y["policy"]] += 1
    return {
        "names": names,
        "reference": names[reference],
        "votes": len(told),
        "strength": strengths.tolist(),
        "low": (strengths - errors).tolist(),
        "high": (strengths + errors).tolist(),
        "win_rate": bradley_terry.win_rates(fitted).tolist(),
        "order": fitted.term("order"),
        "length": fitted.term("length") if length else None,
        "both_bad": bad,
        "loose": list(fitted.loose),
        "people": int(people.max()) + 1,
        "rough": int(people.max()) + 1 < FEW,
    }


def _order(x: Mapping[str, Any]) -> float:
    """1 where the item's first response was shown first, -1 where the second was, 0 where nobody knows."""
    return 0.0 if not x["shown"] else 1.0 if x["shown"][0] == 0 else -1.0


def _numbered(names: Iterable[str]) -> np.ndarray:
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names])


def _between_policies(x: Mapping[str, Any]) -> bool:
    """True for a judgement that counts, about a pair of two policies that are named."""
    item = x["item"]
    if x["kind"] != "judge" or not x["stands"] or x.get("blocked") or item["kind"] != "pair":
        return False
    names = [y["policy"] for y in item["responses"]]
    return item["purpose"] == "work" and all(names) and names[0] != names[1]


def _json(value: Any) -> Any:
    """The value with null for what JSON cannot hold."""
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
