"""Simulated people, who judge through the labelling page's HTTP interface as people do with its page.

    person = Client("http://127.0.0.1:8000", token)
    count = work(person, choose)            # judges until there is nothing left to judge

`choose` maps an item, whose responses stand in the order of the screen, to a choice: {"degree": -2 to 2} of a
pair, {"rating": ...} of one response, {"ranks": [...]} of several.
"""

import json
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.people.annotators import AnnotatorConfig, preference_probability
from rlhf_jax.people.asking import Reply, ask

PAUSES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Seconds between the attempts of a request that the server did not answer, or was too busy for."""
Choose = Callable[[dict[str, Any]], dict[str, Any]]


class Client:
    """A person or an owner, known by the token of a link, at the server of that address.

    A request that got no answer is sent again, which is safe: a judgement is kept once under its key. Raises
    ConnectionError where the server stays away, and ValueError, with its sentence, for what it refuses.
    """

    def __init__(self, url: str, token: str, timeout: float = 60.0):
        self.url, self.token, self.timeout = url.rstrip("/"), token, timeout

    def lease(self) -> tuple[dict[str, Any] | None, str]:
        """(the next item with its lease, ""), or (None, why: done, waiting, paused or training)."""
        status, headers, said = self.call("POST", "/api/lease")
        return (None, headers.get("Why", "")) if status == 204 else (json.loads(said), "")

    def judge(
        self, lease: str, choice: dict[str, Any], key: str = "", **more: Any
    ) -> dict[str, Any]:
        """The server's word on a judgement: its "kind" is "surplus" where it came too late.

        `key` makes the judgement one, however often it is sent; empty: a new one. `more` are further fields,
        such as comment=.
        """
        body = {"lease": lease, "choice": choice} | more
        return json.loads(self.call("PUT", f"/api/judgements/{key or uuid.uuid4()}", body)[2])

    def skip(self, lease: str, reason: str, comment: str = "") -> dict[str, Any]:
        """The server's word on passing over an item."""
        body = {"key": str(uuid.uuid4()), "lease": lease, "reason": reason, "comment": comment}
        return json.loads(self.call("POST", "/api/skip", body)[2])

    def undo(self, key: str) -> dict[str, Any]:
        """The server's word on taking back the judgement `key`, with the item again."""
        body = {"key": str(uuid.uuid4())}
        return json.loads(self.call("POST", f"/api/judgements/{key}/undo", body)[2])

    def put(self, items: list[dict[str, Any]]) -> dict[str, int]:
        """Puts the owner's items; those with known ids change nothing. Returns counts."""
        return json.loads(self.call("PUT", "/api/items", items)[2])

    def export(self, kind: str = "comparisons") -> list[dict[str, Any]]:
        """The owner's export: raw, comparisons, ratings, rankings or demonstrations."""
        said = self.call("GET", f"/api/export?kind={kind}")[2].decode()
        return [json.loads(line) for line in said.split("\n") if line]

    def call(self, method: str, path: str, body: Any = None) -> Reply:
        """The reply to a request of the interface."""
        return ask(method, self.url + path, self.token, body, self.timeout, PAUSES)


def work(person: Client, choose: Choose, most: int = 0) -> int:
    """Judges what the person is given, `most` items (0: until there is none), and returns how many."""
    count = 0
    while not most or count < most:
        given, _ = person.lease()
        if given is None:
            break
        person.judge(given["lease"], choose(given["item"]))
        count += 1
    return count


class Taste(NamedTuple):
    """A simulated person, who prefers by Bradley-Terry on a gold score, as `annotators` do.

    An answer is a function of the person's seed and of the two responses, in whatever order they stand.
    """

    gold: Callable[[str, list[str]], np.ndarray]  # (prompt, responses) -> scores
    cfg: AnnotatorConfig
    seed: int

    def choose(self, item: dict[str, Any]) -> dict[str, Any]:
        """A degree for a pair: 2 where a fair coin would agree less than one time in ten, else 1."""
        shown = [response["text"] for response in item["responses"]]
        first, second = sorted(shown)
        prompt = item["prompt"] if isinstance(item["prompt"], str) else json.dumps(item["prompt"])
        scores = np.asarray(self.gold(prompt, [first, second]), float)
        words = np.array([len(text.split()) for text in (first, second)], float)
        p = preference_probability(scores[:1], scores[1:], words[:1], words[1:], self.cfg)[0]
        spread = f"{self.seed}\n{prompt}\n{first}\n{second}".encode()
        draw = np.random.default_rng(list(spread)).random()
        preferred = first if draw < p else second
        size = 2 if max(p, 1 - p) > 0.9 else 1
        return {"degree": -size if preferred == shown[0] else size}
