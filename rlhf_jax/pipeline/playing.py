"""Games of `game.py` on the host: played by a policy or at random, and described for a report."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import sampling
from rlhf_jax.algorithms import episodes
from rlhf_jax.algorithms.episodes import EpisodeConfig
from rlhf_jax.batches import Demonstrations, Samples
from rlhf_jax.devices.parallel import DATA, Devices
from rlhf_jax.evaluation.intervals import bootstrap_interval
from rlhf_jax.tasks import guessing

SFT_FROM, EVALUATION_FROM = 2**29, 2**30
"""First numbers of prompts, which share no secrets with those of training, numbered from 0."""


def play(cfg, sample_turn, params, index, draw, key) -> tuple[Samples, np.ndarray]:
    """Plays one game a row, and returns it with its rewards [B, T]; rows of one index share a secret."""
    return episodes.play(
        sample_turn,
        partial(guessing.respond, cfg=cfg.game),
        params,
        guessing.prompts(index, draw),
        guessing.secrets(index, cfg.game, cfg.seed),
        key,
        EpisodeConfig(turns=cfg.game.turns, turn_length=guessing.TURN, reply_length=1),
    )


def make_sample_turn(devices: Devices, lm) -> Callable:
    """`sample_turn(params, prompts, key)`: a turn of the policy in each game, on the host."""
    turn = sampling.SampleConfig(length=guessing.TURN, stop=(guessing.END,))
    sample = devices.compile(sampling.make_sample(lm, turn), (P(), P(DATA), P()), P(DATA))
    return lambda params, prompts, key: devices.fetch(
        sample(params, devices.put_batch(prompts), key)
    )


def demonstrations(cfg) -> tuple[Demonstrations, Demonstrations]:
    """Games of random play for SFT, and an eighth of them held out; the environment's words are masked."""
    rows, rng = cfg.demonstrations, np.random.default_rng(cfg.seed)

    def random_turn(params, prompts, key):
        turn = guessing.random_turns(rows, cfg.game, rng)
        mask = np.ones(turn.shape, bool)
        grow = lambda x, y: np.concatenate([x, y], axis=1)
        return Samples(
            tokens=grow(prompts.tokens, turn),
            attention_mask=grow(prompts.attention_mask, mask),
            mask=mask,
            logprobs=np.zeros(mask.shape, np.float32),
            ended=np.zeros(rows, bool),
        )

    index = SFT_FROM + np.arange(rows, dtype=np.int32)
    games, _ = play(cfg, random_turn, None, index, 0 * index, jax.random.key(0))
    games = Demonstrations(games.tokens, games.attention_mask, games.mask)
    train, held_out = (slice(rows // 8, None), slice(rows // 8))
    return jax.tree.map(lambda x: x[train], games), jax.tree.map(lambda x: x[held_out], games)


def words_of(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """All tokens after the prompt [B, T], and which of them are the environment's."""
    T = samples.mask.shape[1]
    return samples.tokens[:, -T:], samples.attention_mask[:, -T:] & ~samples.mask


def evaluate_games(cfg, sample_turn, params, index, key):
    """Plays one game for each index, in batches of one size, and returns samples and rewards."""
    parts = []
    for start in range(0, len(index), cfg.batch_size):
        rows = np.resize(index[start : start + cfg.batch_size], cfg.batch_size)
        parts.append(play(cfg, sample_turn, params, rows, 0 * rows, key))
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(index)], *parts)


def compare(cfg, sample_turn, policies: dict, key) -> tuple[dict, list[dict], list[dict]]:
    """Lets policies, by name, play the same games: results, and rows of samples.jsonl and tokens.jsonl."""
    index = EVALUATION_FROM + np.arange(cfg.eval_games, dtype=np.int32)
    sides = {name: evaluate_games(cfg, sample_turn, x, index, key) for name, x in policies.items()}
    returns = {name: rewards.sum(axis=1) for name, (_, rewards) in sides.items()}
    ends = {name: guessing.outcomes(*words_of(samples)) for name, (samples, _) in sides.items()}
    optimum, random = guessing.optimal_return(cfg.game), guessing.random_return(cfg.game)
    intervals = lambda of: {name: bootstrap_interval(x)._asdict() for name, x in of.items()}
    exact = {"of random play, exact": random, "optimum, exact": optimum}
    results = {
        "return": intervals(returns) | exact,
        "share of the optimum": float(returns["after"].mean() / optimum),
        "games won": intervals({name: won for name, (won, _) in ends.items()}),
        "turns a game": intervals({name: turns for name, (_, turns) in ends.items()}),
        "entropy of random play, nats a token": float(np.log(cfg.game.numbers) / guessing.TURN),
    }
    return results, *rows_of(cfg, index, sides, returns)


def rows_of(cfg, index, sides, returns, games: int = 30, shown: int = 8):
    """Rows of samples.jsonl and tokens.jsonl; the environment's tokens have no reward."""
    secrets = guessing.secrets(index[:games], cfg.game, cfg.seed)
    samples: list[dict] = [
        {"method": cfg.algorithm.upper(), "prompt": f"(secret {secret + 1}) guess"}
        for secret in secrets
    ]
    tokens = []
    for side, (played, rewards) in sides.items():
        said, heard = words_of(played)
        for i, row in enumerate(samples):
            real = heard[i] | played.mask[i]
            words = guessing.text(said[i][real], cfg.game)
            row |= {side: words, f"{side}_score": float(returns[side][i])}
            if side == "after" and i < shown:
                earned = [
                    None if environment else float(reward)
                    for environment, reward in zip(heard[i][real], rewards[i][real], strict=True)
                ]
                tokens.append({"prompt": row["prompt"], "tokens": words.split(), "reward": earned})
    return samples, tokens
