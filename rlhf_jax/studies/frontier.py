"""The frontier of a study: the most gold that a policy of each KL can have, estimated from draws."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlhf_jax.evaluation import overoptimization as maths
from rlhf_jax.studies import context as contexts
from rlhf_jax.studies.context import Seed, StudyContext
from rlhf_jax.studies.learners import Method, log_probabilities, on_policy, sample_held_out
from rlhf_jax.studies.population import Job
from rlhf_jax.studies.study import Study
from rlhf_jax.studies.trees import tree_index, tree_repeat
from rlhf_jax.tasks import reviews, reviews_law

LAMBDAS = tuple(np.concatenate([[0.0], np.geomspace(0.02, 20, 80)]))
PENALTIES = 0.5, 0.25  # KL coefficients of the policies that sample the frontier


def find_frontiers(
    study: Study, kinds: Sequence[str], method: Method, seed: Seed
) -> dict[str, maths.Frontier]:
    """The frontier of each kind of gold, estimated with policies that `method` trains."""
    jobs = [Job(f"{kind}-frontier", frontier_run, (kind, method)) for kind in kinds]
    found = study.run(jobs, [seed])
    arrays = lambda row: {name: np.array(x, float) for name, x in row.items()}
    return {kind: maths.Frontier(**arrays(found[f"{kind}-frontier"][0])) for kind in kinds}


def frontier_run(
    context: StudyContext, kind: str, method: Method, seeds: Sequence[Seed]
) -> list[dict]:
    """The most gold that a policy of each KL can have, estimated from draws.

    The pool holds no draws at KLs that the reference hardly reaches. So draws of policies are added that were
    trained on gold with a KL penalty, whose optima lie on the frontier; every draw is weighed against the
    mixture of all its sources.
    """
    samples, golds = [tree_repeat(context.pool)], [contexts.pool_gold(context, kind)]
    sources, prompts = [context.reference], [*context.held_out]
    for strength in PENALTIES:
        params = on_policy(context, replace(method, strength=strength), seeds[:1], kind=kind).params
        drawn, gold, _ = sample_held_out(
            context, params, seeds[:1], kind=kind, draws=context.cfg.pool_draws
        )
        sources.append(tree_index(params, 0))
        samples.append(drawn)
        golds.append(gold[0])
        prompts += context.held_out
    logprobs = np.array(
        [[log_probabilities(context, source, x)[0] for x in samples] for source in sources]
    )
    logprobs = logprobs.reshape(len(sources), -1)  # under each source, of all draws
    weights = maths.balance_log_weights(logprobs[0], logprobs, [len(x) for x in golds])
    aspects = np.array([reviews.aspect_of(prompt) for prompt in prompts])
    return [average_over_aspects(np.concatenate(golds), weights, aspects)._asdict()] * len(seeds)


def average_over_aspects(golds, log_weights, aspects) -> maths.Frontier:
    """The frontier of prompts whose distribution of gold depends on their aspect."""
    names, counts = np.unique(aspects, return_counts=True)
    least = min(20.0, counts.min() / 8)
    frontiers = [
        maths.frontier_of_samples(golds[None, x], LAMBDAS, log_weights[None, x], least_ess=least)
        for x in (aspects == name for name in names)
    ]
    known = functools.reduce(np.intersect1d, (f.lambdas for f in frontiers))
    cut = [maths.Frontier(*(x[np.isin(f.lambdas, known)] for x in f)) for f in frontiers]
    return maths.average(cut, counts.astype(float).tolist())


def grammar_frontier() -> maths.Frontier:
    """The exact frontier of symbolic gold under the grammar itself."""
    return maths.average(
        [maths.frontier_of_law(*law, LAMBDAS) for law in map(reviews_law.gold_law, reviews.ASPECTS)]
    )
