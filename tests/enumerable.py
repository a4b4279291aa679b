"""A world small enough to enumerate: three content tokens and EOS, four columns, 121 responses.

Prefixes and responses share one numbering, a ternary heap: the empty prefix is 0, and saying content
token c after prefix n leads to 3 n + 1 + c. Prefixes 0 to 39 may go on or end, so response n < 40 is
prefix n and EOS; responses 40 to 120 are four content tokens, and no EOS. Everything here is NumPy
loops over that tree, so it shares no code with what it judges; `apply` is the tabular model that is trained.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.batches import Prompts, Sequences

CONTENT, LENGTH = 3, 4  # content tokens; T
EOS = CONTENT
VOCABULARY = CONTENT + 1
PREFIXES, RESPONSES = 40, 121
BOS = EOS  # a prompt may hold the stop token, as GPT-2's does
PAD = 0  # a content token: masks alone may say what is padding
BETA = 0.5


class World(NamedTuple):
    """The reference's logits after each prefix [40, 4], and the score of each response [121]."""

    ref_logits: jax.Array
    scores: jax.Array


def make(seed: int) -> World:
    """Logits N(0, 0.7^2) and scores N(0, 1)."""
    rng = np.random.default_rng(seed)
    ref_logits = 0.7 * rng.normal(size=(PREFIXES, VOCABULARY))
    return World(jnp.float32(ref_logits), jnp.float32(rng.normal(size=RESPONSES)))


def content_of(node: int) -> list[int]:
    """The content tokens of a prefix or response."""
    said = []
    while node:
        node, token = divmod(node - 1, CONTENT)
        said.append(token)
    return said[::-1]


def prompts(rows: int) -> Prompts:
    """The one prompt there is, in every row, each row another draw of it."""
    return Prompts(
        tokens=jnp.full((rows, 1), BOS),
        attention_mask=jnp.ones((rows, 1), bool),
        index=jnp.zeros(rows, jnp.int32),
        draw=jnp.arange(rows),
    )


def responses() -> Sequences:
    """Every response, in order: tokens [121, 5], mask [121, 4]."""
    tokens = np.full((RESPONSES, 1 + LENGTH), PAD)
    tokens[:, 0] = BOS
    mask = np.zeros((RESPONSES, LENGTH), bool)
    for n in range(RESPONSES):
        said = content_of(n) + [EOS] * (n < PREFIXES)
        tokens[n, 1 : 1 + len(said)] = said
        mask[n, : len(said)] = True
    attention_mask = np.concatenate([np.ones((RESPONSES, 1), bool), mask], axis=1)
    return Sequences(tokens=tokens, attention_mask=attention_mask, mask=mask)


def distribution(logits, temperature: float = 1.0) -> np.ndarray:
    """The probability of each response [121] under logits after each prefix [40, 4]."""
    logits = np.asarray(logits, np.float64) / temperature
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    reach = np.ones(RESPONSES)
    for n in range(1, RESPONSES):
        parent, token = divmod(n - 1, CONTENT)
        reach[n] = reach[parent] * probs[parent, token]
    reach[:PREFIXES] *= probs[
        :, EOS
    ]  # after the loop: children need to reach their parent, not end it
    return reach


def optimum(world: World, temperature: float = 1.0) -> tuple[np.ndarray, float]:
    """(pi* [121], J*): pi_ref exp(score / beta) / Z, and beta log Z.

    A policy that is sampled at a temperature is the distribution of its divided logits, and so is its
    reference; pi* is what it samples then.
    """
    weights = distribution(world.ref_logits, temperature) * np.exp(
        np.asarray(world.scores, float) / BETA
    )
    return weights / weights.sum(), BETA * np.log(weights.sum())


def through(weights: np.ndarray) -> np.ndarray:
    """What of weights over responses [121] goes through each prefix [40], its own ending included."""
    reach = np.array(weights, float)
    for n in reversed(range(1, RESPONSES)):
        reach[(n - 1) // CONTENT] += reach[n]
    return reach[:PREFIXES]


def logits_of(pi: np.ndarray) -> np.ndarray:
    """The log-probabilities after each prefix [40, 4] of a distribution over responses [121]."""
    reach = np.concatenate([through(pi), pi[PREFIXES:]])
    children = reach[1:].reshape(PREFIXES, CONTENT)
    ends = pi[:PREFIXES, None]
    return np.log(np.concatenate([children, ends], axis=1) / reach[:PREFIXES, None])


def soft_values(world: World) -> np.ndarray:
    """The optimal critic [40]: beta log E_ref[exp(score / beta) | prefix]; its first entry is J*."""
    ref = distribution(world.ref_logits)
    return BETA * np.log(
        through(ref * np.exp(np.asarray(world.scores, float) / BETA)) / through(ref)
    )


def total_variation(p, q) -> float:
    """Half the sum of |p - q|."""
    return 0.5 * float(np.abs(p - q).sum())


def nodes(tokens, attention_mask) -> jax.Array:
    """The prefix or response reached after each column of tokens [B, L]; EOS and padding stay."""
    reached = [jnp.zeros(len(tokens), jnp.int32)]
    for token, real in zip(tokens.T[1:], attention_mask.T[1:], strict=True):
        node = reached[-1]
        reached.append(jnp.where(real & (token != EOS), CONTENT * node + 1 + token, node))
    return jnp.stack(reached, axis=1)


def response_of(samples) -> jax.Array:
    """Which response each row is [B]."""
    return nodes(samples.tokens, samples.attention_mask)[:, -1]


def apply(table, tokens, attention_mask) -> jax.Array:
    """The tabular model: row `nodes` of a table [40, ...] in each column, [B, L, ...]."""
    return table[jnp.minimum(nodes(tokens, attention_mask), PREFIXES - 1)]
