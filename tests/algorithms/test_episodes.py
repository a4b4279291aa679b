"""Episodes against a twin that plays one row at a time, and what algorithms make of masks with holes."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sampling
from rlhf_jax.algorithms import episodes, policy_gradient, ppo, rollout, sft
from rlhf_jax.algorithms.episodes import EpisodeConfig
from rlhf_jax.algorithms.policy_gradient import DAPO, DR_GRPO, GRPO, GSPO, RLOO
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.algorithms.rollout import RolloutConfig
from rlhf_jax.batches import Demonstrations, Prompts, Rollout, Samples
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops.advantages import gae
from rlhf_jax.ops.reduce import normalise
from rlhf_jax.sampling import SampleConfig

B, P, V, STOP = 16, 3, 11, (1, 2, 3)
CFG = EpisodeConfig(turns=4, turn_length=3, reply_length=2, pad=5)
T = CFG.turns * (CFG.turn_length + CFG.reply_length)
LM = networks.language_model(
    ModelConfig(vocab_size=V, context=P + T, layers=1, d_model=12, heads=2)
)
AC = networks.actor_critic(LM)
KEY = jax.random.key(3)
ROLLOUT = RolloutConfig()


def prompts():
    """Two draws of each of eight prompts, of one to three tokens; what stands on padding is junk."""
    rng, rows = np.random.default_rng(0), np.arange(B, dtype=np.int32)
    mask = np.arange(P) >= rng.integers(0, P, B // 2).repeat(2)[:, None]
    tokens = rng.integers(0, V, (B // 2, P), np.int32).repeat(2, axis=0)
    return Prompts(tokens, mask, index=rows // 2 + 40, draw=rows % 2)


class Answer(NamedTuple):
    """What the environment makes of a turn, of one row."""

    state: int
    words: list[int]
    reward: float
    done: bool


def answer(state, words) -> Answer:
    """An environment with a memory, whose replies have no, one or two words."""
    state += sum(words) + 1
    return Answer(
        state, [state % V, (3 * state) % V][: state % 3], 0.25 * (state % 5), state % 6 == 0
    )


def respond(state, tokens, mask):
    """`answer`, over rows; junk stands where no word is."""
    rows = [answer(s, t[m].tolist()) for s, t, m in zip(state, tokens, mask, strict=True)]
    words, heard = np.full((len(rows), 2), 7, np.int32), np.zeros((len(rows), 2), bool)
    for i, row in enumerate(rows):
        words[i, : len(row.words)], heard[i, : len(row.words)] = row.words, True
    rewards = np.array([row.reward for row in rows], np.float32)
    return (
        np.array([row.state for row in rows]), words, heard, rewards,
        np.array([row.done for row in rows]),
    )  # fmt: skip


def speak(text, index, draw, key):
    """A policy that says what a seed of all it may depend on says: (tokens, log-probabilities)."""
    seed = [*text, 99, index, draw, *np.asarray(jax.random.key_data(key)).tolist()]
    rng = np.random.default_rng(seed)
    words = rng.integers(0, V, CFG.turn_length).tolist()
    ends = [i for i, word in enumerate(words) if word in STOP]
    words = words[: ends[0] + 1] if ends else words
    return words, (-rng.random(len(words))).tolist()


def alone(tokens, index, draw):
    """The twin: one episode as lists of (token, said by the policy, log-probability, reward)."""
    said, state = [], 0
    for turn in range(CFG.turns):
        text = tokens + [token for token, *_ in said]
        words, logprobs = speak(text, index, draw, jax.random.fold_in(KEY, turn))
        state, reply, reward, done = answer(state, words)
        earned = [0.0] * (len(words) - 1) + [reward]
        said += [(word, True, *x) for word, *x in zip(words, logprobs, earned, strict=True)]
        said += [(word, False, 0.0, 0.0) for word in reply]
        if done:
            break
    return said


def test_episodes_are_what_a_row_plays_alone():
    given, widths = prompts(), set()

    def sample_turn(params, before, key):
        assert params == "params"
        widths.add(before.tokens.shape[1])
        n, W = CFG.turn_length, before.tokens.shape[1]
        tokens, mask = np.full((B, W + n), 8, np.int32), np.zeros((B, n), bool)
        logprobs = np.zeros((B, n), np.float32)
        for i, real in enumerate(before.attention_mask):
            text = before.tokens[i, real].tolist()
            assert np.all(real[np.argmax(real) :])  # left-padded
            words, said = speak(text, before.index[i], before.draw[i], key)
            tokens[i, W : W + len(words)], mask[i, : len(words)] = words, True
            logprobs[i, : len(words)] = said
        return Samples(tokens, None, mask, logprobs, None)  # pyright: ignore[reportArgumentType]

    samples, rewards = episodes.play(
        sample_turn, respond, "params", given, np.zeros(B, int), KEY, CFG
    )
    assert widths == {P + T - CFG.turn_length - CFG.reply_length}  # one shape: compiled once
    np.testing.assert_array_equal(samples.tokens[:, :P], given.tokens)
    np.testing.assert_array_equal(samples.attention_mask[:, :P], given.attention_mask)
    lengths = []
    for i in range(B):
        text = given.tokens[i, given.attention_mask[i]].tolist()
        want = alone(text, int(given.index[i]), int(given.draw[i]))
        fill = [(CFG.pad, False, 0.0, 0.0)] * (T - len(want))
        tokens, mask, logprobs, earned = zip(*want, *fill, strict=True)
        np.testing.assert_array_equal(samples.tokens[i, P:], tokens)
        np.testing.assert_array_equal(samples.attention_mask[i, P:], np.arange(T) < len(want))
        np.testing.assert_array_equal(samples.mask[i], mask)
        np.testing.assert_allclose(samples.logprobs[i], logprobs, rtol=1e-6)
        np.testing.assert_allclose(rewards[i], earned, rtol=1e-6)
        lengths.append(len(want))
    assert len(set(lengths)) > 4 and max(np.sum(samples.mask, axis=1)) > 5  # uneven enough to tell
    assert rewards.dtype == samples.logprobs.dtype == np.float32


# --- with the shipped sampler and a transformer


@pytest.fixture(scope="module")
def params():
    """Of an actor-critic, its critic's head not at zero."""
    policy = jax.jit(LM.init)(jax.random.key(0))
    made = AC.init(jax.tree.map(lambda x: 2 * x, policy))
    made["value"]["head"] = jax.random.normal(KEY, made["value"]["head"].shape)
    return made


SAMPLE = jax.jit(
    sampling.make_sample(LM, SampleConfig(length=CFG.turn_length, stop=STOP, pad=CFG.pad))
)


def play(params, given):
    state = np.zeros(len(given.index), int)
    return episodes.play(SAMPLE, respond, params["policy"], given, state, KEY, CFG)


@pytest.fixture(scope="module")
def played(params):
    return play(params, prompts())


def holes_of(samples):
    """Words of the environment [B, T]."""
    return samples.attention_mask[:, -samples.mask.shape[1] :] & ~samples.mask


def test_log_probabilities_are_those_of_the_training_forward_pass(params, played):
    samples, _ = played
    assert np.sum(holes_of(samples)) > B and np.sum(samples.mask) > 4 * B
    logprobs, _ = jax.jit(partial(LM.policy_fn, last=T))(
        params["policy"], samples.tokens, samples.attention_mask
    )
    logprobs = np.asarray(logprobs)
    np.testing.assert_allclose(samples.logprobs[samples.mask], logprobs[samples.mask], atol=1e-4)
    assert np.all(samples.logprobs[~samples.mask] == 0)


def test_an_episode_depends_on_its_own_prompt_and_draw_alone(params, played):
    order = np.random.default_rng(1).permutation(B)
    samples, rewards = play(params, jax.tree.map(lambda x: x[order], prompts()))
    want = jax.tree.map(lambda x: x[order], played)
    np.testing.assert_array_equal(samples.tokens, want[0].tokens)
    np.testing.assert_array_equal(samples.mask, want[0].mask)
    np.testing.assert_allclose(samples.logprobs, want[0].logprobs, atol=1e-5)
    np.testing.assert_array_equal(rewards, want[1])
    first, second = samples.tokens[np.argsort(order)][0::2], samples.tokens[np.argsort(order)][1::2]
    assert np.all(np.any(first != second, axis=1))  # two draws of one prompt


def test_each_turn_has_noise_of_its_own():
    uniform = networks.from_logits(lambda params, tokens, mask: jnp.zeros((*tokens.shape, V)))
    sample = jax.jit(sampling.make_sample(uniform, SampleConfig(length=4)))
    silent = lambda state, tokens, mask: (
        state, np.zeros((B, 0), np.int32), np.zeros((B, 0), bool), np.zeros(B, np.float32),
        np.zeros(B, bool),
    )  # fmt: skip
    cfg = EpisodeConfig(turns=3, turn_length=4, reply_length=0)
    samples, _ = episodes.play(sample, silent, None, prompts(), None, KEY, cfg)
    turns = samples.tokens[:, P:].reshape(B, 3, 4)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(turns[:, a] == turns[:, b]) < 0.25  # 1 / 11 by chance


def test_gae_over_holes_is_gae_with_the_holes_cut_out(played):
    samples, rewards = played
    values = np.random.default_rng(0).normal(size=rewards.shape).astype(np.float32)
    rewards = rewards - 0.1 * values  # on every column: what stands on holes must not be seen
    estimate = jax.jit(partial(gae, gamma=0.9, lam=0.8))
    whole = estimate(rewards, values, samples.mask)
    order = np.argsort(~samples.mask, axis=1, kind="stable")
    cut = [np.take_along_axis(x, order, axis=1) for x in (rewards, values, samples.mask)]
    assert np.all(np.diff(cut[2].astype(int), axis=1) <= 0)  # no holes are left
    for got, want in zip(whole, estimate(*cut), strict=True):
        got = np.take_along_axis(np.asarray(got), order, axis=1)
        np.testing.assert_allclose(got, want, atol=1e-5)
        assert np.all(got[~cut[2]] == 0)


# --- what each algorithm makes of a record with holes


def noise(mask, seed):
    return jnp.where(mask, jax.random.normal(jax.random.key(seed), mask.shape), 0.0)


class Noise(NamedTuple):
    """What the environment's words bring with them: nothing of it may be seen."""

    holes: jax.Array  # where they are [B, T]
    recorded: float  # size of what is added to every quantity of the rollout there
    recomputed: float  # how their new log-probabilities move with every parameter

    def record(self, x, seed):
        return x + self.recorded * noise(self.holes, seed)

    def recompute(self, fn):
        def wrapped(params, *args, **kwargs):
            logprobs, *rest = fn(params, *args, **kwargs)
            total = sum(jnp.sum(x) for x in jax.tree.leaves(params))
            return logprobs + jnp.where(self.holes, self.recomputed * total, 0.0), *rest

        return wrapped


def ppo_gradient(params, samples, rewards, loud: Noise):
    """Of PPO's loss on a rollout."""
    cfg = PPOConfig(entropy_coef=0.01)
    annotate = rollout.make_annotate_with_values(LM.policy_fn, AC.fn, ROLLOUT)
    seen = rollout.with_rewards(annotate(params, params["policy"], samples), rewards, ROLLOUT)
    seen = seen._replace(
        samples=samples._replace(logprobs=loud.record(samples.logprobs, 0)),
        rewards=loud.record(seen.rewards, 1),
        logprobs=loud.record(seen.logprobs, 4),
        ref_logprobs=loud.record(seen.ref_logprobs + noise(samples.mask, 9), 2),
        values=loud.record(seen.values, 3),
    )
    batch, _ = ppo.prepare(seen, jnp.float32(0.1), cfg)
    weights = normalise(ppo.weights_of(batch))
    loss = partial(ppo.loss, actor_critic_fn=loud.recompute(AC.fn), cfg=cfg)
    return jax.grad(loss, has_aux=True)(params, {}, batch, weights)[0]


def policy_gradient_of(cfg, params, samples, rewards, loud: Noise):
    """Of the loss of a method without a critic."""
    cfg = replace(cfg, group=2)
    seen = Rollout(
        samples=samples._replace(logprobs=loud.record(samples.logprobs, 0)),
        rewards=loud.record(rewards, 1),
        logprobs=loud.record(samples.logprobs, 2),
        ref_logprobs=loud.record(samples.logprobs + noise(samples.mask, 9), 3),
    )
    batch, _ = policy_gradient.prepare(seen, jnp.float32(0.1), cfg)
    weights = normalise(policy_gradient.weights_of(batch, cfg))
    loss = partial(policy_gradient.loss, policy_fn=loud.recompute(LM.policy_fn), cfg=cfg)
    frozen = {"kl_coef": jnp.float32(0.1)}
    return jax.grad(loss, has_aux=True)(params["policy"], frozen, batch, weights)[0]


def sft_gradient(params, samples, rewards, loud: Noise):
    """Of supervised fine-tuning on the episodes, which records no such quantities."""
    batch = Demonstrations(samples.tokens, samples.attention_mask, samples.mask)
    weights = normalise(sft.weights_of(batch))
    loss = partial(sft.loss, policy_fn=loud.recompute(LM.policy_fn))
    return jax.grad(loss, has_aux=True)(params["policy"], {}, batch, weights)[0]


ALGORITHMS = {"sft": sft_gradient, "ppo": ppo_gradient} | {
    name: partial(policy_gradient_of, cfg)
    for name, cfg in dict(rloo=RLOO, grpo=GRPO, dr_grpo=DR_GRPO, dapo=DAPO, gspo=GSPO).items()
}


def largest(tree):
    return max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "name",
    [  # the losses of these three are GRPO's and RLOO's with other weights
        pytest.param(name, marks=pytest.mark.more) if name in ("dr_grpo", "dapo", "gspo") else name
        for name in ALGORITHMS
    ],
)
def test_no_gradient_comes_from_what_the_environment_said(params, played, name):
    """Not from its words' log-probabilities, values and rewards as recorded, nor as recomputed."""
    samples, rewards = played
    gradient, loud = jax.jit(ALGORITHMS[name]), Noise(holes_of(samples), 0.0, 0.0)
    want = gradient(params, samples, rewards, loud)
    other = gradient(params, samples, rewards, loud._replace(recorded=3.0, recomputed=3.0))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), other, want)

    # the control: a mask that takes those words for the policy's
    wrong = samples._replace(mask=samples.mask | holes_of(samples))
    difference = jax.tree.map(jnp.subtract, gradient(params, wrong, rewards, loud), want)
    assert largest(difference) > 0.01 * largest(want) > 0


# --- refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(turns=0), "EpisodeConfig.turns = 0: it must be 1 or more"),
        (dict(turn_length=0), "EpisodeConfig.turn_length = 0: it must be 1 or more"),
        (dict(reply_length=-1), "EpisodeConfig.reply_length = -1: it must be 0 or more"),
    ],
)
def test_a_shape_that_holds_no_episode_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        EpisodeConfig(**settings)


def test_columns_that_are_not_the_configs_and_integer_rewards_are_refused(params):
    def played(cfg, respond=respond):
        zeros = np.zeros(B, int)
        episodes.play(SAMPLE, respond, params["policy"], prompts(), zeros, KEY, cfg)

    with pytest.raises(ValueError, match="turn_length = 2 and 3 columns came: set it to 3"):
        played(replace(CFG, turn_length=2))
    with pytest.raises(ValueError, match="reply_length = 1 and 2 columns came: set it to 2"):
        played(replace(CFG, reply_length=1))

    def rounded(*turn):
        state, words, heard, rewards, done = respond(*turn)
        return state, words, heard, rewards.astype(np.int32), done

    with pytest.raises(TypeError, match="rewards are int32"):
        played(CFG, rounded)
