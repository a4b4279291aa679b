"""Steps are functions of their arguments: they close over no array and remember nothing."""

from functools import partial

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import optimizer, sampling, train_step
from rlhf_jax.algorithms import (
    ensemble,
    ilql,
    kto,
    plackett_luce,
    pointwise,
    policy_gradient,
    ppo,
    preference,
    reward_model,
    rollout,
    sft,
)
from rlhf_jax.batches import (
    Comparisons,
    LabelledBatch,
    LoggedBatch,
    PreferenceBatch,
    Prompts,
    Rankings,
    Ratings,
    Samples,
    Sequences,
)
from rlhf_jax.models import lora, networks, q_networks
from rlhf_jax.models.config import ModelConfig

B, P, T, V = 4, 3, 5, 11
LARGEST = 16  # elements: a schedule's boundaries pass, a table of parameters does not


def jaxprs_in(value):
    """The jaxprs held anywhere in an equation's parameter."""
    if isinstance(value, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from jaxprs_in(item)
    elif isinstance(value, dict):
        yield from jaxprs_in(list(value.values()))


def constants(jaxpr):
    """Every constant array of a jaxpr: its own, those of nested ones, and literals in equations."""
    if isinstance(jaxpr, jax.extend.core.ClosedJaxpr):
        yield from jaxpr.consts
        jaxpr = jaxpr.jaxpr
    for eqn in jaxpr.eqns:
        yield from (x.val for x in eqn.invars if isinstance(x, jax.extend.core.Literal))
        for value in eqn.params.values():
            if isinstance(value, (jax.Array, np.ndarray)):
                yield value
            for inner in jaxprs_in(value):
                yield from constants(inner)


def large_constants(fn, *args):
    """Shapes of the constants above the limit; tracers that escape their trace raise."""
    with jax.checking_leaks():
        jaxpr = jax.make_jaxpr(fn)(*args)
    return [np.shape(x) for x in constants(jaxpr) if np.size(x) > LARGEST]


# --- the shipped steps


def sequences(seed):
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.integers(1, T + 1, (B, 1))
    prompt = np.arange(P) >= rng.integers(0, P, (B, 1))
    return Sequences(
        tokens=rng.integers(0, V, (B, P + T), np.int32),
        attention_mask=np.concatenate([prompt, mask], axis=1),
        mask=mask,
    )


def prompts(seed):
    s = sequences(seed)
    rows = np.arange(B, dtype=np.int32)
    return Prompts(s.tokens[:, :P], s.attention_mask[:, :P], index=rows, draw=0 * rows)


def samples(seed):
    s = sequences(seed)
    noise = np.random.default_rng(seed).normal(size=s.mask.shape).astype(np.float32)
    logprobs, ended = np.where(s.mask, noise - 2, 0), np.arange(B) % 2 > 0
    return Samples(s.tokens, s.attention_mask, s.mask, logprobs, ended)


LM = networks.language_model(
    ModelConfig(vocab_size=V, context=P + T, layers=2, d_model=12, heads=2)
)
AC = networks.actor_critic(LM)
REWARD = networks.reward_model(LM)
Q = q_networks.q_network(LM)
ADAPTERS = lora.LoraConfig(rank=2)
MEMBERS = ensemble.EnsembleConfig(members=2)
TX = optimizer.make(
    optimizer.OptimizerConfig(warmup=2, weight_decay=0.1, eps_placement="tensorflow"), steps=8
)
PPO = ppo.PPOConfig(
    epochs=2, minibatches=2, microbatches=2, whiten_rewards=True, kl_stop=0.1, entropy_coef=0.01
)
PG = policy_gradient.PolicyGradientConfig(
    epochs=2,
    minibatches=2,
    microbatches=2,
    group=2,
    scale="group_std",
    importance_cap=2.0,
    kl_in_reward="none",
    kl_in_loss="k2",
    overlong=0.4,
    kl_stop=0.1,
)


@pytest.fixture(scope="module")
def steps():
    """name -> (function, its arguments by seed)."""
    key = jax.random.key(0)

    @jax.jit
    def init(key):
        policy = LM.init(key)
        members = ensemble.init(REWARD.init, key, policy, MEMBERS)
        params = {"policy": policy, "reward": REWARD.init(key, policy), "ac": AC.init(policy)}
        return params | {"q": Q.init(key, policy), "members": members}

    params = init(key)
    state = {name: train_step.init_state(tree, TX) for name, tree in params.items()}
    scores = np.linspace(-1, 1, B, dtype=np.float32)
    engine = rollout.RolloutConfig(recompute_logprobs=True)
    with_critic = ppo.make_learner(LM.policy_fn, AC, TX, PPO, engine)
    without = policy_gradient.make_learner(LM.policy_fn, TX, PG, engine)
    args_of = {
        "ac": lambda seed: (params["ac"], params["policy"], samples(seed)),
        "policy": lambda seed: (params["policy"], params["policy"], samples(seed)),
    }
    rolled = lambda learner, name, seed: rollout.with_rewards(
        jax.jit(learner.annotate)(*args_of[name](seed)), scores, engine
    )
    ones = np.ones(B, np.float32)
    pairs = lambda seed: Comparisons(sequences(seed), sequences(seed + 100), ones, ones)
    of_members = lambda seed: jax.tree.map(lambda x: np.stack([x, x[::-1]], axis=1), pairs(seed))
    labels = lambda seed: LabelledBatch(
        sequences(seed), scores > 0, -ones, sequences(seed + 100), -2 * ones, ones
    )
    logged = lambda seed: LoggedBatch(sequences(seed), samples(seed).logprobs)
    ready = {
        "ilql": ilql.init_state(params["q"], TX),
        "members": ensemble.init_state(params["members"], TX),
        "adapters": train_step.init_state(lora.split(key, params["policy"], ADAPTERS)[1], TX),
    }
    prefer = lambda method, cfg: method.make_train_step(LM.policy_fn, TX, cfg, microbatches=2)
    return {
        "dpo": (
            prefer(preference, preference.PreferenceConfig()),
            lambda seed: (
                state["policy"],
                {},
                PreferenceBatch(pairs(seed), -ones, -2 * ones),
            ),
        ),
        "kto": (prefer(kto, kto.KTOConfig()), lambda seed: (state["policy"], {}, labels(seed))),
        "ilql": (
            ilql.make_train_step(Q.q_fn, TX, ilql.ILQLConfig(), microbatches=2),
            lambda seed: (ready["ilql"], {}, logged(seed)),
        ),
        "ensemble": (
            ensemble.make_train_step(
                REWARD.fn, TX, reward_model.RewardLossConfig(), microbatches=2
            ),
            lambda seed: (ready["members"], {}, of_members(seed)),
        ),
        "ensemble score": (
            ensemble.make_score(REWARD.fn, MEMBERS),
            lambda seed: (
                params["members"],
                sequences(seed).tokens,
                sequences(seed).attention_mask,
            ),
        ),
        "sft": (
            sft.make_train_step(LM.policy_fn, TX, microbatches=2),
            lambda seed: (state["policy"], {}, sequences(seed)),
        ),
        "adapters": (
            lora.over_base(lambda fn: sft.make_train_step(fn, TX), LM.policy_fn, ADAPTERS),
            lambda seed: (ready["adapters"], {"base": params["policy"]}, sequences(seed)),
        ),
        "reward": (
            reward_model.make_train_step(REWARD.fn, TX, microbatches=2),
            lambda seed: (state["reward"], {}, pairs(seed)),
        ),
        "ratings": (
            pointwise.make_train_step(REWARD.fn, TX, "binary"),
            lambda seed: (state["reward"], {}, rated(sequences(seed))),
        ),
        "rankings": (
            plackett_luce.make_train_step(REWARD.fn, TX),
            lambda seed: (state["reward"], {}, ranked([sequences(seed), sequences(seed + 9)])),
        ),
        "ppo": (
            with_critic.update,
            lambda seed: (state["ac"], {}, np.float32(0.1), rolled(with_critic, "ac", seed), key),
        ),
        "pg": (
            without.update,
            lambda seed: (
                state["policy"],
                {},
                np.float32(0.1),
                rolled(without, "policy", seed),
                key,
            ),
        ),
        "annotate": (without.annotate, args_of["policy"]),
        "annotate with values": (with_critic.annotate, args_of["ac"]),
        "sample": (
            sampling.make_sample(LM, sampling.SampleConfig(length=T, stop=(1,), top_k=5)),
            lambda seed: (params["policy"], prompts(seed), key),
        ),
    }


NAMES = ["sft", "reward", "ppo", "pg", "sample", "annotate", "annotate with values"]
NAMES += ["adapters", "dpo", "kto", "ilql", "ensemble", "ensemble score"]
NAMES += [pytest.param(name, marks=pytest.mark.more) for name in ("ratings", "rankings")]


def rated(rows):
    n = len(rows.tokens)
    return Ratings(rows, np.arange(n, dtype=np.float32) % 2, np.ones(n, np.float32))


def ranked(sides):
    n = len(sides[0].tokens)
    both = jax.tree.map(lambda *x: np.stack(x, axis=1), *sides)
    return Rankings(both, np.tile(np.int32([0, 1]), (n, 1)), np.ones(n, np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_steps_close_over_no_array(steps, name):
    fn, args = steps[name]
    assert large_constants(jax.jit(fn), *args(0)) == []


def bits(tree):
    """The bytes of every array but keys, which have none."""
    is_key = lambda x: jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree) if not is_key(x)]


@pytest.mark.parametrize("name", NAMES)
def test_equal_inputs_give_equal_bits_whatever_came_between(steps, name):
    fn, args = steps[name]
    before = bits(args(0))
    compiled = jax.jit(fn)
    first = bits(compiled(*args(0)))
    other = bits(compiled(*args(1)))
    assert other != first
    assert bits(compiled(*args(0))) == first
    assert bits(args(0)) == before


@pytest.mark.parametrize("name", ["sft", "sample"])
def test_a_function_made_anew_computes_the_same_bits(steps, name):
    fn, args = steps[name]
    remade = {
        "sft": lambda: sft.make_train_step(LM.policy_fn, TX, microbatches=2),
        "sample": lambda: sampling.make_sample(
            LM, sampling.SampleConfig(length=T, stop=(1,), top_k=5)
        ),
    }[name]()
    assert bits(jax.jit(remade)(*args(0))) == bits(jax.jit(fn)(*args(0)))


# --- the walker can fail


TABLE = jnp.arange(17.0)
NUMPY = np.arange(17.0, dtype=np.float32)


@jax.custom_vjp
def custom(x):
    return jnp.sum(x * TABLE)


custom.defvjp(lambda x: (custom(x), x), lambda x, g: (g * TABLE,))


CULPRITS = {
    "plainly": lambda x: x * TABLE,
    "as NumPy": lambda x: x * NUMPY,
    "under jit": jax.jit(lambda x: x * TABLE),
    "in a scan": lambda x: jax.lax.scan(lambda c, _: (c * TABLE, None), x, None, length=2)[0],
    "in a while loop": lambda x: jax.lax.while_loop(
        lambda c: jnp.all(c < 1), lambda c: c * TABLE, x
    ),
    "in a condition": lambda x: jax.lax.cond(jnp.all(x > 0), lambda: x * TABLE, lambda: x),
    "under remat": jax.checkpoint(lambda x: jnp.sin(x * TABLE)),
    "in a custom derivative": custom,
    "in its backward pass": jax.grad(custom),
    "in a map of a jit": lambda x: jax.lax.map(jax.jit(lambda y: y * TABLE), x[None]),
}


@pytest.mark.parametrize("where", CULPRITS)
def test_an_array_that_is_closed_over_is_found(where):
    fn = CULPRITS[where]
    assert (17,) in large_constants(fn, jnp.ones(17))
    assert (17,) in large_constants(jax.jit(fn), jnp.ones(17))


def test_a_step_whose_loss_closes_over_parameters_is_found(steps):
    """What the rule is there for: a reference policy that slipped in by closure."""
    _, args = steps["sft"]
    state, _, batch = args(0)
    reference = state.params

    def loss(params, frozen, batch, weights):
        total, metrics = sft.loss(params, frozen, batch, weights, policy_fn=LM.policy_fn)
        other, _ = sft.loss(reference, frozen, batch, weights, policy_fn=LM.policy_fn)
        return total - other, metrics

    step = train_step.make_train_step(loss, sft.weights_of, TX, microbatches=2)
    found = large_constants(step, state, {}, batch)
    assert reference["embedding"]["embedding"].shape in found


def test_small_constants_and_arguments_pass():
    assert large_constants(lambda x: x * jnp.arange(16.0), jnp.ones(16)) == []
    assert large_constants(partial(jnp.multiply, 2.0), TABLE) == []
