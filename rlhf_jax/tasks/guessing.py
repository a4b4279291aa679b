"""A guessing game of several turns, in words, whose best return is known exactly.

    guess 4 . lower 2 . higher 3 . right

The policy names a number and ends its turn; the environment, which holds a secret, answers higher or lower.
Any other turn gets "what". Each turn costs a little, and the right number earns 1 and ends the game.
Rewards therefore lie on several tokens, with the environment's words between the policy's. All functions
act on arrays of rows; the index of a prompt determines its secret.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rlhf_jax.batches import Prompts
from rlhf_jax.bounds import Count, Decay, Settings
from rlhf_jax.tasks.task import Environment, Row, Task

WORDS = ("guess", ".", "higher", "lower", "right", "what")
GUESS, END, HIGHER, LOWER, RIGHT, WHAT = range(len(WORDS))
TURN = 2  # columns of a turn: a number and END


@dataclass(frozen=True)
class GuessingConfig(Settings):
    """Rules of the game. Binary search wins within `turns` where `numbers` is below 2^turns."""

    numbers: Count = 7
    """Count of numbers that the secret is drawn from."""
    turns: Count = 3
    """Turns before the game is lost."""
    cost: Decay = 0.1
    """Reward subtracted for each turn."""


def vocabulary(cfg: GuessingConfig) -> list[str]:
    """The word of each token: those of `WORDS`, then the numbers from 1."""
    return [*WORDS, *(str(number + 1) for number in range(cfg.numbers))]


def text(tokens: Int[np.ndarray, " n"], cfg: GuessingConfig) -> str:
    """Tokens as words."""
    words = vocabulary(cfg)
    return " ".join(words[token] for token in tokens)


def prompts(index: Int[np.ndarray, " B"], draw: Int[np.ndarray, " B"]) -> Prompts:
    """The only prompt of the game; its index determines the secret, which no token reveals."""
    shape = len(index), 1
    return Prompts(np.full(shape, GUESS, np.int32), np.ones(shape, bool), index, draw)


def secrets(index: Int[np.ndarray, " B"], cfg: GuessingConfig, seed: int) -> Int[np.ndarray, " B"]:
    """The secret (from 0) of each prompt, uniform over the numbers; all draws of a prompt share it."""
    drawn = {i: np.random.default_rng((seed, i)).integers(cfg.numbers) for i in set(index.tolist())}
    return np.array([drawn[i] for i in index.tolist()], np.int32)


def respond(
    secret: Int[np.ndarray, " B"],
    tokens: Int[np.ndarray, "B n"],
    mask: Bool[np.ndarray, "B n"],
    *,
    cfg: GuessingConfig,
) -> tuple[
    Int[np.ndarray, " B"],
    Int[np.ndarray, "B 1"],
    Bool[np.ndarray, "B 1"],
    Float[np.ndarray, " B"],
    Bool[np.ndarray, " B"],
]:
    """(secret, reply, its mask, reward, done) after a turn of `tokens`, as `episodes.play` needs."""
    guess = tokens[:, 0] - len(WORDS)
    understood = (mask.sum(axis=1) == TURN) & (guess >= 0) & (tokens[:, TURN - 1] == END)
    reply = np.select(
        [~understood, guess < secret, guess > secret], [WHAT, HIGHER, LOWER], default=RIGHT
    )
    right = reply == RIGHT
    reward = right.astype(np.float32) - np.float32(cfg.cost)
    return secret, reply[:, None].astype(np.int32), np.ones((len(reply), 1), bool), reward, right


def reply(row: Row, lines: Sequence[str], *, cfg: GuessingConfig) -> tuple[str, bool]:
    """(the environment's word for the number in the last of `lines`, whether the game is over), in texts."""
    numbers = vocabulary(cfg)[len(WORDS) :]
    if lines[-1] not in numbers:
        return WORDS[WHAT], False
    guess = numbers.index(lines[-1])
    word = LOWER if guess > row["secret"] else HIGHER if guess < row["secret"] else RIGHT
    return WORDS[word], word == RIGHT


def task(cfg: GuessingConfig, seed: int = 0, games: int = 1000) -> Task:
    """The game as a task of several turns, with the return as gold and random play as its corpus."""
    secret = secrets(np.arange(games, dtype=np.int32), cfg, seed).tolist()
    rows = [{"prompt": WORDS[GUESS], "secret": x} for x in secret]
    environment = Environment(cfg.turns, TURN, 1, functools.partial(reply, cfg=cfg))

    def corpus(seed: int, n: int, rows: Sequence[Row]) -> list[tuple[str, str]]:
        rng, numbers = np.random.default_rng(seed), vocabulary(cfg)[len(WORDS) :]
        drawn = [rows[i] for i in rng.integers(len(rows), size=n)]
        speak = lambda lines: numbers[rng.integers(len(numbers))]
        return [(row["prompt"], environment.play(row, speak)) for row in drawn]

    def gold(rows: Sequence[Row], responses: Sequence[str]):
        turns = [text.split("\n")[::2] for text in responses]
        won = [reply(*x, cfg=cfg)[1] for x in zip(rows, turns, strict=True)]
        return np.array(won, np.float32) - np.float32(cfg.cost) * np.array([*map(len, turns)])

    split = lambda share, seed: (rows[round(share * games) :], rows[: round(share * games)])
    return Task(split, corpus, gold, environment=environment)


def outcomes(
    tokens: Int[np.ndarray, "B T"], heard: Bool[np.ndarray, "B T"]
) -> tuple[Bool[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """(won, turns taken) of whole games; `heard` marks the environment's own words."""
    return np.any(heard & (tokens == RIGHT), axis=1), heard.sum(axis=1)


def random_turns(
    rows: int, cfg: GuessingConfig, rng: np.random.Generator
) -> Int[np.ndarray, "rows n"]:
    """A turn of a player who names any number, equally likely."""
    guess = rng.integers(cfg.numbers, size=rows) + len(WORDS)
    return np.stack([guess, np.full(rows, END)], axis=1).astype(np.int32)


def optimal_return(cfg: GuessingConfig) -> float:
    """The best expected return V(numbers, turns), by dynamic programming over the game tree:

        V(k, t) = max_i [1 + i V(i, t - 1) + (k - 1 - i) V(k - 1 - i, t - 1)] / k - cost

    with k secrets still possible, i of them below the guess, and V = 0 without secrets or turns.
    """

    @functools.cache
    def value(k, turns):
        if not k or not turns:
            return 0.0
        below = ((i, k - 1 - i) for i in range(k))
        best = max(1 + i * value(i, turns - 1) + j * value(j, turns - 1) for i, j in below)
        return best / k - cfg.cost

    return value(cfg.numbers, cfg.turns)


def expected_return(
    player: Callable[[int, int, int], Float[np.ndarray, " numbers"]], cfg: GuessingConfig
) -> float:
    """The exact return of `player(low, high, turn)`, which gives the probability of each number.

    Secrets `low` to `high - 1` are still possible, counted from 0 like turns. Probability missing to a sum
    of one belongs to turns that are not understood.
    """

    @functools.cache
    def value(low, high, turn):
        if low == high or turn == cfg.turns:
            return 0.0
        probs, size = player(low, high, turn), high - low
        total = (1 - np.sum(probs)) * value(low, high, turn + 1)
        for guess, prob in enumerate(probs):
            at, after = np.clip((guess, guess + 1), low, high).tolist()  # equal outside low..high
            below = (at - low) * value(low, at, turn + 1)
            above = (high - after) * value(after, high, turn + 1)
            total += prob * (after - at + below + above) / size
        return total - cfg.cost

    return float(value(0, cfg.numbers, 0))


def random_return(cfg: GuessingConfig) -> float:
    """The exact return of a player of `random_turns`."""
    return expected_return(lambda low, high, turn: np.full(cfg.numbers, 1 / cfg.numbers), cfg)
