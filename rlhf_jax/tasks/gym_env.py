"""Gymnasium: a task as an environment for other frameworks, and their text environments as tasks.

    env = TaskEnv(dialogue.TASK, rows)          # observation: the text so far; action: a response, or a turn
    TASK = task(make, seeds, agent, turns=4, turn_length=8, reply_length=16)          # in a FILE.py
    def earned(prompts, responses, seed):       # --task FILE.py --rl.reward FILE.py:earned
        return TASK.gold([{"seed": x} for x in seed], responses).tolist()

An environment of Gymnasium hides its state, and one of a task is a function of its row: each reply is
computed by playing the turns again from `reset(seed)`. The environment must therefore do the same after the
same seed, which Gymnasium's `check_env` tests.
"""

import string
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from rlhf_jax.tasks.task import Environment, Row, Task, one_line, split_rows, transcript

try:
    import gymnasium
    from gymnasium.spaces import Discrete, Text
except ImportError as error:
    raise ImportError("gymnasium is not installed: pip install 'rlhf_jax[gym]'") from error

LONGEST = 1_000_000
"""Most characters of an observation."""


class TaskEnv(gymnasium.Env):
    """A task as an environment that passes `check_env`.

    An episode has one of `rows`, drawn at `reset`. The observation is the text so far, one line for the
    prompt and for each turn and reply. An action is a response, or the next turn in a task with an
    environment. With a `vocabulary` an action is a token: the number of a word, or their count to end the
    turn. The reward is gold, at the end. `length` is the most characters of an action, or the most tokens
    of a turn.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self, task: Task, rows: Sequence[Row], vocabulary: Sequence[str] = (), length: int = 256
    ):
        self.task, self.rows, self.vocabulary, self.length = task, rows, [*vocabulary], length
        texts = [x for row in rows for x in row.values() if isinstance(x, str)]
        characters = frozenset(string.printable).union(*texts, *vocabulary)
        text = partial(Text, min_length=0, charset=characters)
        self.observation_space = text(LONGEST)
        self.action_space = Discrete(len(vocabulary) + 1) if vocabulary else text(length)
        self.row: Row = rows[0]
        self.lines: list[str] = []
        self.words: list[str] = []  # of a turn that has not ended

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """(the prompt, no information), of a row drawn by the seed."""
        super().reset(seed=seed)
        self.row = self.rows[int(self.np_random.integers(len(self.rows)))]
        self.lines, self.words = [], []
        return self._text(), {}

    def step(self, action):
        """(text so far, reward, whether the episode is over, False, no information)."""
        if isinstance(action, str):
            return self._take(action)
        if action < len(self.vocabulary):
            self.words.append(self.vocabulary[action])
            if len(self.words) < self.length:
                return self._text(), 0.0, False, False, {}
        turn, self.words = " ".join(self.words), []
        return self._take(turn)

    def _take(self, turn: str):
        environment, done = self.task.environment, True
        if environment is None:
            self.lines.append(turn)
        else:
            self.lines.append(one_line(turn))
            reply, done = environment.reply(self.row, self.lines)
            self.lines.append(one_line(reply))
            done = done or len(self.lines) == 2 * environment.turns
        reward = float(self.task.gold([self.row], [transcript(self.lines)])[0]) if done else 0.0
        return self._text(), reward, done, False, {}

    def _text(self) -> str:
        unfinished = [" ".join(self.words)] if self.words else []
        return "\n".join([self.row["prompt"], *self.lines, *unfinished])


def replay(
    make: Callable[[], Any], seed: int, turns: Sequence[str]
) -> tuple[list[str], float, bool]:
    """(observations, sum of rewards, whether it is over) of an environment that `make` makes.

    The first observation is that of `reset(seed)`. One that repeats the observation before it and the action
    (a text so far) is cut to what follows them. A turn that is not in the action space is not played: it is
    answered by the last observation. Raises ValueError where an action or an observation is no text.
    """
    env = make()
    if not isinstance(env.action_space, Text):
        raise ValueError(
            f"the action space is {env.action_space}: only Text can be played in turns"
        )
    before, _ = env.reset(seed=seed)
    seen, total, over = [before], 0.0, False
    for turn in turns:
        if over:
            break
        if turn not in env.action_space:
            seen.append(seen[-1])
            continue
        text, reward, ended, cut, _ = env.step(turn)
        new = text.removeprefix(before).strip() if before and text.startswith(before) else ""
        repeats = new and new.startswith(turn)
        seen.append(new.removeprefix(turn).strip() if repeats else text)
        before, total, over = text, total + float(reward), bool(ended or cut)
    env.close()
    return seen, total, over


def environment(
    make: Callable[[], Any], *, turns: int, turn_length: int, reply_length: int
) -> Environment:
    """A text environment of Gymnasium as that of a task whose rows have a "seed"."""

    def reply(row: Row, lines: Sequence[str]) -> tuple[str, bool]:
        seen, _, over = replay(make, row["seed"], lines[::2])
        return seen[-1], over

    return Environment(turns, turn_length, reply_length, reply)


def task(
    make: Callable[[], Any],
    seeds: Sequence[int],
    agent: Callable[[np.random.Generator, Row, list[str]], str],
    **lengths: int,
) -> Task:
    """A task of the episodes of `seeds`, with gold the sum of an episode's rewards.

    The prompt is the first observation. `agent(rng, row, lines)` speaks in the demonstrations. `lengths` are
    those of `environment`.
    """
    played = environment(make, **lengths)
    rows = [{"prompt": replay(make, seed, [])[0][0], "seed": seed} for seed in seeds]

    def corpus(seed: int, n: int, rows: Sequence[Row]) -> list[tuple[str, str]]:
        rng = np.random.default_rng(seed)
        drawn = [rows[i] for i in rng.integers(len(rows), size=n)]
        return [(row["prompt"], played.play(row, partial(agent, rng, row))) for row in drawn]

    def gold(rows: Sequence[Row], responses: Sequence[str]):
        returns = [
            replay(make, row["seed"], text.split("\n")[::2])[1]
            for row, text in zip(rows, responses, strict=True)
        ]
        return np.array(returns, np.float32)

    split = lambda share, seed: split_rows(rows, share, seed)
    return Task(split, corpus, gold, environment=played)
