"""Items that people judge on the labelling page: prompts with the responses of policies, or of a task.

{"kind": "pair", "prompt": ..., "responses": [{"text": ..., "policy": ..., "sampling": {...}}, ...]}
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from rlhf_jax.data.batching import rows_at
from rlhf_jax.pipeline import finished, texts

Kind = Literal["pair", "thumbs", "stars", "ranking"]
RESPONSES: dict[Kind, int] = {"pair": 2, "thumbs": 1, "stars": 1, "ranking": 4}
"""Responses in an item of each kind."""
Item = dict[str, Any]


def of_policies(
    run: finished.Finished,
    stages: Sequence[str],
    rows: list[texts.Row],
    kind: Kind,
    n: int,
    seed: int,
) -> list[Item]:
    """Items about `n` of the rows, each with a response of the policy at the end of each stage.

    Rows are drawn without replacement until all are used. Items with equal responses are left out.
    """
    rows = [rows[i] for i in rows_at(len(rows), n, seed, 0)]
    sides = [finished.sampled(run, stage, rows, seed + k) for k, stage in enumerate(stages)]
    sampling = {"temperature": run.cfg.sample.temperature, "length": run.cfg.sample.length}
    names = [f"{run.folder}:{stage}" for stage in stages]
    return _items([row.prompt for row in rows], sides, kind, names, sampling)


def of_task(name: str, kind: Kind, n: int, seed: int) -> list[Item]:
    """Items about `n` prompts of a generated task, with responses drawn as those of its demonstrations."""
    task = texts.load_task(name)
    train, _ = task.prompts(0.1, seed)
    rows = [train[i] for i in rows_at(len(train), n, seed, 0)]
    prompts, answers = [row["prompt"] for row in rows], []
    for number, row in enumerate(rows):
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        answers.append([text for _, text in task.corpus(own, RESPONSES[kind], [row])])
    return _items(prompts, [*zip(*answers, strict=True)], kind, [name] * RESPONSES[kind], {})


def _items(
    prompts: Sequence[str],
    sides: Sequence[Sequence[str]],
    kind: Kind,
    names: Sequence[str],
    sampling: dict[str, Any],
) -> list[Item]:
    """Items of the prompts, with the response of each side and the name of its policy."""
    own = {"kind": "single", "scale": kind} if RESPONSES[kind] == 1 else {"kind": kind}
    answer = lambda text, policy: {"text": text, "policy": policy, "sampling": sampling}
    return [
        own | {"prompt": prompt, "responses": [*map(answer, said, names)]}
        for prompt, *said in zip(prompts, *sides, strict=True)
        if len({*said}) == len(said)
    ]
