"""Tasks as environments of Gymnasium and back: `check_env`, and the guessing game both ways."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data import tokenizer
from rlhf_jax.devices import parallel
from rlhf_jax.models import networks
from rlhf_jax.pipeline import generation, texts
from rlhf_jax.sampling import SampleConfig
from rlhf_jax.tasks import dialogue, guessing, reviews
from rlhf_jax.tasks.guessing import GuessingConfig

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env  # noqa: E402

from rlhf_jax.tasks import gym_env  # noqa: E402
from rlhf_jax.tasks.gym_env import TaskEnv  # noqa: E402

GAME = GuessingConfig()
TASK = guessing.task(GAME, games=40)
ROWS = TASK.prompts(0.0, 0)[0]
WORDS = guessing.vocabulary(GAME)
LENGTHS = {"turns": GAME.turns, "turn_length": 2, "reply_length": 1}


def make():
    return TaskEnv(TASK, ROWS)


@pytest.mark.parametrize("vocabulary", [(), ("what", "milk", "order", "the", "was", "4")])
@pytest.mark.parametrize("name", ["dialogue", "reviews", "guessing"])
def test_a_task_passes_the_check_of_gymnasium(name, vocabulary):
    known = {"dialogue": dialogue.TASK, "reviews": reviews.TASK, "guessing": TASK}[name]
    rows = known.prompts(0.5, 0)[1]
    with pytest.warns(UserWarning, match="having a spec"):  # no render modes to check
        check_env(TaskEnv(known, rows, vocabulary))


def arrays(secret, turns):
    """The return of one game by the functions on arrays, one turn after the other."""
    total = 0.0
    for turn in turns:
        ids = [WORDS.index(turn) if turn in WORDS else guessing.GUESS, guessing.END]
        *_, reward, done = guessing.respond(
            np.array([secret], np.int32), np.array([ids], np.int32), np.ones((1, 2), bool), cfg=GAME
        )
        total += reward[0]
        if done[0]:
            break
    return total


def test_the_guessing_game_has_equal_returns_both_ways():
    rng, seeds = np.random.default_rng(0), range(60)
    agent = lambda rng, row, lines: str(rng.integers(1, 8))
    back = gym_env.task(make, seeds, agent, **LENGTHS)
    rows, held_out = back.prompts(0.25, 0)
    assert len(held_out) == 15 and {row["seed"] for row in rows + held_out} == {*seeds}
    returns = []
    for row in rows:
        turns = [*map(str, rng.integers(0, 9, GAME.turns))]
        env, earned, over, script = make(), 0.0, False, iter(turns)
        seen, _ = env.reset(seed=row["seed"])
        assert seen == row["prompt"] == "guess"
        while not over:  # the task as an environment
            seen, reward, over, _, _ = env.step(next(script))
            earned += reward
        want = arrays(env.row["secret"], turns)
        script = iter(turns)  # and the environment as that of a task
        text = back.environment.play(row, lambda lines, script=script: next(script))
        assert seen == f"guess\n{text}"
        assert earned == pytest.approx(want) == pytest.approx(back.gold([row], [text])[0])
        returns.append(want)
    assert len({*np.round(returns, 3)}) == 4  # won at each turn, and lost
    drawn = back.corpus(0, 20, rows)
    assert all(prompt == "guess" and text.split("\n")[0] in WORDS for prompt, text in drawn)


def test_tokens_as_actions_are_the_same_game():
    env, same = TaskEnv(TASK, ROWS, WORDS, length=2), make()
    for each in (env, same):
        each.reset(seed=3)
    end = len(WORDS)
    seen, *_ = env.step(WORDS.index("4"))
    assert seen == "guess\n4"
    assert env.step(end) == same.step("4")
    env.step(WORDS.index("7"))
    assert env.step(WORDS.index("what")) == same.step("7 what")  # the turn has no room for more


class Echo(gymnasium.Env):
    """Repeats what it hears, and a number of its seed; over after three actions. Knows only small letters."""

    observation_space = action_space = gymnasium.spaces.Text(20)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.number = 3, int(self.np_random.integers(100))
        return f"hello{self.number}", {}

    def step(self, action):
        assert action in self.action_space
        self.left -= 1
        return f"{action}{self.number}", float(len(action)), self.left == 0, False, {}


def test_a_text_environment_answers_a_rollout_and_its_words_are_no_ones_loss(tmp_path):
    """A policy that says a or b, or ends its turn, with the environment's replies between its own."""
    words = tokenizer.train(["hello a b 12"], 300, tmp_path)
    a, b, bad = (words(f" {x}", add_special_tokens=False)["input_ids"][-1] for x in "ab!")
    logits = jnp.full(tokenizer.size(words), -jnp.inf).at[jnp.array([a, b, bad, 2])].set(0.0)
    wide = lambda tokens: jnp.broadcast_to(logits, (*tokens.shape, len(logits)))
    lm = networks.from_logits(lambda params, tokens, mask: wide(tokens))
    lengths = {"turns": 4, "turn_length": 3, "reply_length": 8}
    task = gym_env.task(Echo, range(13), lambda rng, row, lines: "a", **lengths)
    rows = [texts.row_of(row) for row in task.prompts(0.1, 0)[0]]
    sample = SampleConfig(length=44, stop=(words.eos_token_id,), pad=words.pad_token_id)
    generator = generation.make_generator(
        sample, parallel.on_device(), lm, words, 8, 12, task.environment
    )
    said = generator.generate(None, rows, jax.random.key(0))
    refused = 0
    for n, (row, text) in enumerate(zip(rows, said.texts, strict=True)):
        env, over, played = Echo(), False, 0.0
        seen, _ = env.reset(seed=row.columns["seed"])
        assert seen == row.prompt
        lines = text.split("\n")
        for turn, heard in zip(lines[::2], lines[1::2], strict=True):
            assert not over
            if turn in env.action_space:
                seen, reward, over, *_ = env.step(turn)
                played += reward
            else:
                refused += 1
            assert heard == seen
        assert over or len(lines) == 8
        assert task.gold([texts.plain_row(row)], [text])[0] == played
        own = said.samples.tokens[n, 8:][said.samples.mask[n]]
        assert {*own.tolist()} <= {a, b, bad, 2}
        assert said.samples.ended[n] == over
    assert refused > 0


def test_actions_that_are_no_texts_are_refused():
    with pytest.raises(ValueError, match=r"the action space is Discrete\(14\): only Text"):
        gym_env.replay(lambda: TaskEnv(TASK, ROWS, WORDS), 0, [])


def test_the_extra_is_named_where_gymnasium_is_missing():
    program = "import sys; sys.modules['gymnasium'] = None; import rlhf_jax.tasks.gym_env"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: gymnasium is not installed: pip install 'rlhf_jax[gym]'"
    )
