"""Parts of one round of the circle: responses, pairs to ask about, reward models, and the arena.

Everything is of one seed. `experiments/studies/circle.py` puts the parts together.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from rlhf_jax.batches import Comparisons, Samples, Sequences
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.prompts import repeat_draws
from rlhf_jax.models import networks
from rlhf_jax.ops.padding import last_real
from rlhf_jax.people import aggregation
from rlhf_jax.people.annotators import AnnotatorConfig
from rlhf_jax.people.choosing import Chosen, Pool
from rlhf_jax.people.client import Choose, Taste
from rlhf_jax.people.heads import bootstrap_heads
from rlhf_jax.people.judgements import from_raw, work
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.studies import context as contexts
from rlhf_jax.studies.context import Seed, StudyContext
from rlhf_jax.studies.learners import Method, on_policy, sample_held_out
from rlhf_jax.studies.proxies import fit_rewards
from rlhf_jax.studies.trees import tree_index, tree_repeat

Item = dict[str, Any]
GOLD = "warmth"
"""Gold of the study, which a few hundred comparisons teach."""
DRAWS = 4
"""Responses to each held-out prompt."""
STAGE = 10
"""First stage of the random keys of responses; round r has stage 10 + r."""


class Responses(NamedTuple):
    """R responses of the policies of the rounds so far."""

    prompt: Int[np.ndarray, " R"]
    """Number of the prompt, which is another one in each round."""
    prompts: list[str]
    """Text of each response's prompt."""
    texts: list[str]
    policy: list[str]
    """Name of the policy that wrote each response."""
    samples: Samples
    gold: Float[np.ndarray, " R"]

    def __add__(self, more: "Responses") -> "Responses":  # type: ignore[override]
        join = lambda a, b: np.concatenate([a, b])
        return Responses(
            join(self.prompt, more.prompt),
            self.prompts + more.prompts,
            self.texts + more.texts,
            self.policy + more.policy,
            jax.tree.map(join, self.samples, more.samples),
            join(self.gold, more.gold),
        )


def people(cfg: AnnotatorConfig, noise: Sequence[float], seed: Seed) -> list[Choose]:
    """Simulated people of a seed, one for each noise, whose answers are functions of the pair alone."""
    gold = lambda prompt, texts: contexts.OF_TEXTS[GOLD]([prompt] * len(texts), texts)
    own = [replace(cfg, noise=x) for x in noise]
    return [Taste(gold, x, 1000 * seed.data + n).choose for n, x in enumerate(own)]


def respond(
    context: StudyContext, policy, prompts: int, draws: int, seed: Seed, r: int
) -> Responses:
    """`draws` responses of the policy of round r to each of `prompts` training prompts of its own."""
    rows = rows_at(len(context.prompts), prompts, seed.data, r)
    asked = repeat_draws(tree_index(context.encoded, rows), draws)
    said = contexts.respond(context, tree_repeat(policy), asked, [seed.data], stage=STAGE + r)
    samples = tree_index(said, 0)
    texts = [context.prompts[row] for row in np.repeat(rows, draws)]
    return Responses(
        np.repeat(r * prompts + np.arange(prompts), draws),
        texts,
        contexts.response_texts(context, samples),
        [f"round {r}"] * len(texts),
        samples,
        contexts.gold(context, GOLD, texts, samples),
    )


class Asked(NamedTuple):
    """Pairs that people were asked about: the numbers of their responses, and the ids of their items."""

    a: Int[np.ndarray, " A"]
    b: Int[np.ndarray, " A"]
    ids: list[str]

    def __add__(self, more: "Asked") -> "Asked":  # type: ignore[override]
        join = lambda x, y: np.concatenate([x, y])
        return Asked(join(self.a, more.a), join(self.b, more.b), self.ids + more.ids)


NOTHING = Asked(np.zeros(0, int), np.zeros(0, int), [])


class Learned(NamedTuple):
    """A reward model, and the ensemble of linear rewards on its trunk's last layer."""

    params: Any
    heads: Float[np.ndarray, "M D"]
    scores: Float[np.ndarray, " N"]
    """Scores of the pool's responses."""


def initial(context: StudyContext, size: str, members: int, seed: Seed) -> Learned:
    """The reward model before the first label: the reference's trunk, and heads at random."""
    rm, reference = networks.reward_model(context.lms[size]), context.references[size]
    params = jax.device_get(rm.init(jax.random.key(seed.reward), reference))
    rng = np.random.default_rng([seed.reward, 0])
    heads = bootstrap_heads(np.zeros((0, context.lms[size].d_model)), np.zeros(0), members, rng)
    return Learned(params, heads, np.zeros(len(context.held_out), np.float32))


def pool_of(
    context: StudyContext, size: str, learned: Learned, said: Responses, draws: int, asked: Asked
) -> Pool:
    """All pairs of different responses to a prompt of the last round, and the pairs asked before."""
    features = features_of(context, size, learned.params, said.samples)
    latest = np.flatnonzero([name == said.policy[-1] for name in said.policy]).reshape(-1, draws)
    times = {
        pair: 0
        for group in latest.tolist()
        for pair in itertools.combinations(group, 2)
        if said.texts[pair[0]] != said.texts[pair[1]]
    }
    for pair in zip(asked.a.tolist(), asked.b.tolist(), strict=True):
        times[pair] = times.get(pair, 0) + 1
    a, b = np.array([*times], int).reshape(-1, 2).T
    counts, gone = np.array([*times.values()], int), features[asked.a] - features[asked.b]
    rewards = learned.heads @ features.T
    return Pool(said.prompt[a], a, b, rewards, features, gone, counts)


def features_of(context: StudyContext, size: str, params, samples) -> Float[np.ndarray, "R D"]:
    """The last layer of a reward model's trunk for each response, which its head reads."""
    fn = _features(context.lms[size])
    found = contexts.score(context, fn, tree_repeat(params), tree_repeat(samples))
    return found[0].astype(np.float64)


@functools.cache
def _features(lm: networks.LanguageModel) -> Callable:
    def features(params, tokens, attention_mask):
        hidden = lm.hidden_fn(params["trunk"], tokens, attention_mask)
        return hidden[jnp.arange(len(tokens)), last_real(attention_mask)].astype(jnp.float32)

    return features


def questions(
    said: Responses, pool: Pool, chosen: Chosen, strategy: str, r: int, wanted: int
) -> tuple[Asked, list[Item]]:
    """The chosen pairs of round r, and their items, which keep how they were chosen."""
    a, b = pool.a[chosen.index], pool.b[chosen.index]
    asked = Asked(a, b, [f"{r}-{k}" for k in range(len(a))])
    number = lambda x: None if np.isnan(x) else float(x)
    items = []
    for k, id in enumerate(asked.ids):
        selection = {"round": f"round {r}", "model": f"round {r}", "score": number(chosen.score[k])}
        selection["strategy"] = "uniform" if chosen.uniform[k] else strategy
        selection["probability"] = number(chosen.probability[k])
        texts = [{"text": said.texts[i], "policy": said.policy[i]} for i in (a[k], b[k])]
        item = {"id": id, "kind": "pair", "prompt": said.prompts[a[k]], "responses": texts}
        items.append(item | {"wanted": wanted, "selection": selection})
    return asked, items


def votes_on(rows: Sequence[Item], ids: Sequence[str]) -> aggregation.Votes:
    """People's votes on the items of these ids, in an order that does not depend on when they were given."""
    judged = work(from_raw(rows))
    place = {name: n for n, name in enumerate(ids)}
    number = np.array([place.get(name, -1) for name in judged.items], int)
    item, person, first = judged.votes
    kept = number[item] >= 0
    item, person, first = number[item][kept], person[kept], first[kept]
    order = np.lexsort((person, item))
    return aggregation.Votes(item[order], person[order], first[order])


def labels_of(votes: aggregation.Votes, how: str, pairs: int) -> Float[np.ndarray, " A"]:
    """The probability that each of `pairs` pairs' first response is better, by "majority" or "dawid_skene".

    1/2 where all people said that both are bad.
    """
    by_model = lambda: aggregation.dawid_skene(votes).probability
    found = aggregation.majority(votes) if how == "majority" else by_model()
    return np.concatenate([found, np.full(pairs - len(found), 0.5)])


def truth(said: Responses, asked: Asked) -> Float[np.ndarray, " A"]:
    """The labels that gold gives: 1 where a pair's first response is the better one, 1/2 where none is."""
    return (1 + np.sign(said.gold[asked.a] - said.gold[asked.b])) / 2


def learn(
    context: StudyContext,
    size: str,
    said: Responses,
    asked: Asked,
    labels: Float[np.ndarray, " A"],
    *,
    members: int,
    seed: Seed,
) -> Learned:
    """A reward model of all labelled pairs, and `members` heads on its trunk, each of a bootstrap of them."""
    rows = Sequences(said.samples.tokens, said.samples.attention_mask, said.samples.mask)
    sides = (tree_index(rows, x) for x in (asked.a, asked.b))
    ones = np.ones(len(labels), np.float32)
    data = Comparisons(*sides, weight=ones, probability=labels.astype(np.float32))
    params, scores = fit_rewards(context, size, tree_repeat(data), [seed])
    params = tree_index(params, 0)
    features = features_of(context, size, params, rows)
    rng = np.random.default_rng([seed.reward, len(labels)])
    heads = bootstrap_heads(features[asked.a] - features[asked.b], labels, members, rng)
    return Learned(params, heads, scores[0])


def improve(context: StudyContext, method: Method, size: str, learned: Learned, seed: Seed):
    """Parameters of a policy that starts at the reference, and is trained against the reward model."""
    reward = Reward(contexts.reward_fn(context.lms[size]), tree_repeat(learned.params))
    return tree_index(on_policy(context, method, [seed], kind=GOLD, reward=reward).params, 0)


def held_out(context: StudyContext, policy, seed: Seed) -> tuple[Samples, np.ndarray, np.ndarray]:
    """DRAWS responses of a policy to each held-out prompt: samples, gold, log-ratio to the reference [N]."""
    found = sample_held_out(context, tree_repeat(policy), [seed], kind=GOLD, draws=DRAWS)
    return tree_index(found, 0)


def duels(context: StudyContext, samples: Samples, number: int, r: int, wanted: int) -> list[Item]:
    """Items that compare round r's policy with the reference on held-out prompts, blind.

    `samples` are those of `held_out`; pairs of equal texts are left out.
    """
    each = context.cfg.pool_draws
    prompts = context.held_out[::each][:number]
    rows = np.arange(len(prompts))
    own = contexts.response_texts(context, tree_index(samples, rows * DRAWS))
    other = contexts.response_texts(context, tree_index(context.pool, rows * each))
    names = f"after round {r}", "reference"
    texts = lambda both: [{"text": x, "policy": y} for x, y in zip(both, names, strict=True)]
    item = {"kind": "pair", "wanted": wanted}
    return [
        {"id": f"duel-{r}-{k}", "prompt": prompt, "responses": texts(both), **item}
        for k, (prompt, *both) in enumerate(zip(prompts, own, other, strict=True))
        if both[0] != both[1]
    ]


def uniform_stream(
    pool: Pool, chosen: Chosen, votes: aggregation.Votes, before: int
) -> list[dict[str, Any]]:
    """The votes on each pair of the uniform stream in the newest round, and what the ensemble predicted.

    The round came after `before` labels; without any, nothing was predicted (None).
    """
    predicted = expit(pool.margins[:, chosen.index]).mean(axis=0)
    return [
        {
            "predicted": float(predicted[k]) if before else None,
            "votes": votes.first[votes.item == before + k].tolist(),
        }
        for k in np.flatnonzero(chosen.uniform)
    ]


def right(said: Responses, asked: Asked, labels: Float[np.ndarray, " A"]) -> float:
    """How often labels are on gold's side, of the pairs that gold tells apart; 1/2 is half right.

    1/2 where gold tells none apart.
    """
    gap = said.gold[asked.a] - said.gold[asked.b]
    hit = np.where(labels == 0.5, 0.5, (labels > 0.5) == (gap > 0))
    return float(hit[gap != 0].mean()) if gap.any() else 0.5
