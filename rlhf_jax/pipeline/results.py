"""Results of a run, on prompts that no stage has trained on: numbers, texts side by side, and tokens."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlhf_jax.batches import Samples
from rlhf_jax.evaluation import diversity, intervals, references
from rlhf_jax.evaluation.intervals import bootstrap_interval
from rlhf_jax.pipeline import agreement, generation, keys, scoring, texts
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.rewards import features, verifiers
from rlhf_jax.rewards.functions import RewardError
from rlhf_jax.runs import conclusion

if TYPE_CHECKING:
    from rlhf_jax.pipeline.prepare import Prepared

GOLD, HELD_OUT = "gold", "score of the held-out reward model"
START = "the policy before training"
"""Name, in results, of a policy that training started from and that is not the reference."""

SHOWN = {"gold": "gold", "score": "score of the reward model", "python_reward": "Python reward"}
"""Names of the numbers beside each response in samples.jsonl, and their names in the results."""


def before_and_after(method, prompts, measured: dict, over: str = "SFT") -> dict:
    """Means with intervals over prompts (95 %), and the win rate of `method` over the policy before training,
    which is called `over`.

    `measured` are values [N] before and after by name, the maximised one first. A win is decided by gold if
    it is known, else by the held-out reward model, else by the maximised reward.
    """
    interval = lambda x: bootstrap_interval(x, prompts)._asdict()
    results = {
        name: dict(zip(("before", "after"), map(interval, both), strict=True))
        for name, both in measured.items()
    }
    if not measured:  # from files, without a reward
        return {}
    by = next((x for x in (GOLD, HELD_OUT) if x in measured), next(iter(measured)))
    before, after = measured[by]
    wins = intervals.win_rate(after, before, prompts)._asdict()
    return results | {f"win rate of {method} over {over}, by {by}": wins}


def kl(prompts, log_ratio) -> dict:
    """KL of the policy to the reference, in nats per response, with its interval over prompts."""
    return bootstrap_interval(log_ratio.sum(axis=1), prompts)._asdict()


def variety(sides: Sequence[generation.Responses]) -> dict:
    """How different the responses before and after are: the share of different ones, and distinct-2."""
    kinds = {
        "different responses, of all": diversity.different,
        "distinct-2 (pairs of words)": lambda texts: diversity.distinct(texts, 2),
    }
    return {
        name: {when: fn(said.texts) for when, said in zip(("before", "after"), sides, strict=True)}
        for name, fn in kinds.items()
    }


def sample_rows(method, prompts, sides, measured: dict) -> list[dict]:
    """Prompt, both responses, and their values by gold, the reward model and the Python reward."""
    columns = {"before": sides[0].texts, "after": sides[1].texts}
    for kind, name in SHOWN.items():
        values = zip(("before", "after"), measured.get(name, ()), strict=False)
        columns |= {f"{side}_{kind}": map(float, x) for side, x in values}
    return [
        {"method": method, "prompt": prompt} | dict(zip(columns, row, strict=True))
        for prompt, *row in zip(prompts, *columns.values(), strict=True)
    ]


def token_rows(words, prompts, samples, quantities: dict, shown: int = 8) -> list[dict]:
    """Each of `quantities` [N, T] (KL, value, ...), token by token, for a few responses."""
    every = max(1, len(prompts) // shown)
    rows = []
    for row in range(0, len(prompts), every)[:shown]:
        said = np.asarray(samples.mask)[row]
        ids = np.asarray(samples.tokens)[row, -len(said) :][said]
        rows.append(
            {"prompt": prompts[row], "tokens": [words.decode([token]) for token in ids]}
            | {name: np.asarray(x)[row][said].tolist() for name, x in quantities.items()}
        )
    return rows


# --- the conclusion of a method


def held_out_rows(run: "Prepared") -> list[texts.Row]:
    """Rows of the held-out prompts, each repeated once per response."""
    return [row for row in run.texts.rows_held_out for _ in range(run.cfg.eval_draws)]


def respond(run: "Prepared", params, generator: generation.Generator | None = None, rows=None):
    """Responses of a policy to the held-out prompts, or to `rows`, with the same noise for all policies.

    Give `generator` where the policy is another network than the run's.
    """
    rows = held_out_rows(run) if rows is None else rows
    generate = (generator or run.generator).generate
    return generate(params, rows, keys.key_of(run.cfg.seed, "results"))


def golds(run: "Prepared", rows, said: generation.Responses) -> np.ndarray:
    """True scores of responses [N], in a generated task."""
    task = run.texts.task
    assert task is not None, "only a generated task has gold"
    return task.gold([texts.plain_row(row) for row in rows], said.texts)


def best_gold(run: "Prepared") -> dict:
    """The mean gold of the best responses to the held-out prompts; empty where they are not known."""
    task = run.texts.task
    if task is None or task.best is None:
        return {}
    rows = [texts.plain_row(row) for row in run.texts.rows_held_out]
    return {"gold of the best responses": float(np.mean(task.gold(rows, task.best(rows))))}


def log_ratios(run: "Prepared", reference, samples: Samples) -> np.ndarray:
    """Log-ratio of each sampled token to the reference [N, T]; zero outside the mask."""
    T, lm = samples.mask.shape[1], run.lm.at(run.cfg.sample.temperature)
    fn = lambda params, tokens, mask: lm.policy_fn(params, tokens, mask, last=T)[0]
    logprobs = generation.score(run.devices, fn, reference, samples)
    return np.asarray(samples.logprobs) - np.where(samples.mask, logprobs, 0.0)


def overlap(names, rows: Sequence[texts.Row], sides: Sequence[generation.Responses]) -> dict:
    """Overlaps of responses before and after with the answers of their rows; empty where a row has no text,
    no number and no list of these as its answer."""
    if not names:
        return {}
    try:
        answers = [verifiers.references(row.columns.get("answer")) for row in rows]
    except RewardError:
        return {}
    prompts = [str(row) for row in rows]
    found = [references.compare(names, said.texts, answers, prompts) for said in sides]
    return {x: dict(zip(("before", "after"), (y[x] for y in found), strict=True)) for x in names}


def conclude(
    run: "Prepared", method: str, reference, said: generation.Responses, judges: "Judges", **more
):
    """Writes and shows the results of `method`, whose policy gave the responses `said`.

    Before is the policy that training started from: SFT, or the setting `policy`, whose KL to the reference
    is then a result too.
    `judges` give the rewards of responses. In `more`, `first` are results to list first; `kl` replaces the
    KL (nats per response, an interval) where the sampler's own log-probabilities do not give it; `extra`
    are further results; on `pairs`, or ratings, the maximised reward model is judged; `facts` are listed
    last; and `tokens` are quantities [N, T] by name, which the report shows token by token.
    """
    facts = agreement.about_rewards(run, judges.reward, more.get("pairs")) | (
        more.get("facts") or {}
    )
    rows = held_out_rows(run)
    prompts, sides = [row.prompt for row in rows], (respond(run, run.start(reference)), said)
    measured = {name: [fn(rows, x) for x in sides] for name, fn in judges.of(run).items()}
    log_ratio = log_ratios(run, reference, said.samples)
    over = START if run.cfg.policy else "the reference" if run.cfg.reference else "SFT"
    results = (more.get("first") or {}) | before_and_after(method, prompts, measured, over)
    results |= {"kl": more.get("kl") or kl(prompts, log_ratio)} | variety(sides)
    if run.cfg.policy:
        ratio = log_ratios(run, reference, sides[0].samples)
        results |= {"kl before training": kl(prompts, ratio), START: run.cfg.policy}
    results |= overlap(more.get("overlaps") or (), rows, sides)
    results |= (more.get("extra") or {}) | facts | best_gold(run)
    quantities = {"kl": log_ratio} | (more.get("tokens") or {})
    conclusion.write(
        run.folder,
        results,
        samples=sample_rows(method, prompts, sides, measured),
        tokens=token_rows(run.tokenizer, prompts, said.samples, quantities),
    )
    conclusion.show(run.folder, conclusion.again(run.name))


class Judges(NamedTuple):
    """The reward models that judge responses; None where there is none."""

    reward: Reward | None = None
    held_out: Reward | None = None

    def of(self, run: "Prepared") -> dict[str, Callable]:
        """Functions of (rows, responses), by name: the maximised reward, gold and the task's own metrics, the
        held-out reward model, and features of the texts where these are asked for."""
        found = scoring.measures(run, self.reward)
        if run.texts.task:
            found["gold"] = lambda rows, said: golds(run, rows, said)
            for name, fn in run.texts.task.metrics.items():
                found[name] = lambda rows, said, fn=fn: fn(
                    [texts.plain_row(row) for row in rows], said.texts
                )
        if self.held_out is not None:
            model = self.held_out
            found[HELD_OUT] = lambda rows, said: scoring.model_scores(run, model, said)
        if run.cfg.text_features:
            for name, fn in features.REWARDS.items():
                found[name] = lambda rows, said, fn=fn: np.array(fn((), said.texts))
        return found
