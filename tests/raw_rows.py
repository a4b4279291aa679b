"""Rows of a raw export as people would leave them, made without a server."""

import numpy as np


def row(item, person, preference, number, **more):
    """One judgement that stands; `more` are fields of it, and `of_item` fields of its item."""
    of_item = more.pop("of_item", {})
    texts = more.pop("texts", (f"one {item}", f"another {item}"))
    policies = more.pop("policies", (None, None))
    degree = {"a": 1, "b": -1, "tie": 0, "both_bad": None}[preference]
    said = {
        "key": f"k{number:05}",
        "kind": "judge",
        "at": 1e9 + 10.0 * number,
        "stands": True,
        "shown": [number % 2, 1 - number % 2],
        "choice": {},
        "preference": preference,
        "degree": degree,
        "rating": None,
        "ranks": None,
        "reason": None,
        "comment": "",
        "better": "",
        "differences": False,
        "server_ms": 5000,
        "visible_ms": 3000 + number,
        "guidelines": None,
        "page_version": None,
        "annotator": f"p{person}",
        "simulated": True,
        "undoes": None,
    }
    whole = {
        "id": f"i{item:04}",
        "kind": "pair",
        "scale": None,
        "question": None,
        "prompt": f"prompt {item}",
        "wanted": 3,
        "purpose": "work",
        "gold": None,
        "reason": None,
        "metadata": None,
        "repeats": None,
        "responses": [
            {"text": text, "policy": policy, "sampling": None}
            for text, policy in zip(texts, policies, strict=True)
        ],
    }
    return said | more | {"item": whole | of_item}


def world(seed, items=60, votes=3, people=9, policies=("weak", "middle", "strong")):
    """Votes of people with an accuracy of .8 on pairs of policies; some ties, some "both are bad"."""
    rng = np.random.default_rng(seed)
    rows = []
    for item in range(items):
        i, j = rng.choice(len(policies), 2, replace=False)
        texts = [" ".join(["word"] * int(n)) for n in rng.integers(3, 12, size=2)]
        for person in rng.choice(people, votes, replace=False):
            best = "a" if (i > j) == (rng.random() < 0.8) else "b"
            said = rng.choice([best, "tie", "both_bad"], p=[0.85, 0.1, 0.05])
            degree = {"a": 1, "b": -1, "tie": 0, "both_bad": None}[said]
            rows.append(
                (
                    item,
                    int(person),
                    str(said),
                    {
                        "degree": degree and degree * int(rng.integers(1, 3)),
                        "texts": texts,
                        "policies": (policies[i], policies[j]),
                        "shown": [0, 1] if rng.random() < 0.5 else [1, 0],
                        "visible_ms": int(rng.integers(2000, 9000)),
                    },
                )
            )
    order = rng.permutation(len(rows))
    found = [rows[k] for k in order]
    return [row(item, who, said, n, **more) for n, (item, who, said, more) in enumerate(found)]
