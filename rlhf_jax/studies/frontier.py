"""The frontier of a study: the most gold that a policy of each KL can have, estimated from draws."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlhf_jax.evaluation import overoptimization as maths
from rlhf_jax.studies import lab as labs
from rlhf_jax.studies.lab import Lab, Seed
from rlhf_jax.studies.learners import Method, examine, logprob, on_policy
from rlhf_jax.tasks import reviews

LAMBDAS = tuple(np.concatenate([[0.0], np.geomspace(0.02, 20, 80)]))
PENALTIES = 0.5, 0.25  # KL coefficients of the policies that sample the frontier


def frontier_run(lab: Lab, kind: str, method: Method, seeds: Sequence[Seed]) -> list[dict]:
    """The most gold that a policy of each KL can have, estimated from draws.

    The pool alone says nothing of KLs at which the reference hardly ever speaks. So draws of policies are
    added that were trained on gold with a KL penalty, whose optima lie on the frontier; every draw is
    weighed against the mixture of all its sources.
    """
    said, golds = [labs.one_more(lab.pool)], [labs.pool_gold(lab, kind)]
    sources, asked = [lab.trunks[lab.cfg.policy]], [*lab.asked]
    for strength in PENALTIES:
        policy = on_policy(lab, replace(method, strength=strength), seeds[:1], kind=kind).params
        more, gold, _ = examine(lab, policy, seeds[:1], kind=kind, draws=lab.cfg.pool_draws)
        sources.append(labs.one(policy))
        said.append(more)
        golds.append(gold[0])
        asked += lab.asked
    logprobs = np.array([[logprob(lab, source, x)[0] for x in said] for source in sources])
    logprobs = logprobs.reshape(len(sources), -1)  # of each source, of all draws
    weights = maths.balance_log_weights(logprobs[0], logprobs, [len(x) for x in golds])
    aspects = np.array([reviews.aspect_of(prompt) for prompt in asked])
    return [of_aspects(np.concatenate(golds), weights, aspects)._asdict()] * len(seeds)


def of_aspects(golds, log_weights, aspects) -> maths.Frontier:
    """The frontier of prompts whose aspects have each a law of gold of their own."""
    names, counts = np.unique(aspects, return_counts=True)
    least = min(20.0, counts.min() / 8)
    frontiers = [
        maths.frontier_of_samples(golds[None, x], LAMBDAS, log_weights[None, x], least_ess=least)
        for x in (aspects == name for name in names)
    ]
    known = functools.reduce(np.intersect1d, (f.lambdas for f in frontiers))
    cut = [maths.Frontier(*(x[np.isin(f.lambdas, known)] for x in f)) for f in frontiers]
    return maths.average(cut, counts.astype(float).tolist())


def frontier_of(rows) -> maths.Frontier:
    """What the one `frontier_run` found."""
    return maths.Frontier(**{name: np.array(x, float) for name, x in rows[0].items()})
