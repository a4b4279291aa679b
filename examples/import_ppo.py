"""PPO in a script of your own: the model is a plain dict and a function, the reward is plain Python.

python examples/import_ppo.py     ten seconds on a CPU; the mean score goes from about 1 to 10
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import sampling, train_step
from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.batches import Prompts
from rlhf_jax.models import networks

LETTERS, EOS = "abcdefgh.", 8
B, T, D = 256, 12, 32


def net(params, tokens, attention_mask):
    """Read off the token in each column: logits [B, L, V] of the next one, or values [B, L]."""
    return jnp.tanh(params["in"][tokens]) @ params["out"]


def reward(text):
    """One for every letter that is followed by the next of the alphabet."""
    return sum(text[i : i + 2] in LETTERS for i in range(len(text) - 1))


key, rng = jax.random.key(0), np.random.default_rng(0)
embedding = jax.random.normal(key, (len(LETTERS), D))
policy = {"in": embedding, "out": jnp.zeros((D, len(LETTERS)))}
value = {"in": embedding, "out": jnp.zeros(D)}

lm, tx = networks.from_logits(net), optax.adam(1e-2)
critic = networks.with_values(lm.policy_fn, net)
sample = jax.jit(sampling.make_sample(lm, sampling.SampleConfig(length=T, stop=(EOS,))))
cfg = rollout.RolloutConfig()
annotate = jax.jit(rollout.make_annotate_with_values(lm.policy_fn, critic, cfg))
update = jax.jit(ppo.make_update(critic, tx, ppo.PPOConfig(minibatches=2)))
state = train_step.init_state({"policy": policy, "value": value}, tx)

for i in range(41):
    letters, rows = rng.integers(0, EOS, (B, 1)), np.arange(B)
    prompts = Prompts(letters, np.ones((B, 1), bool), index=i * B + rows, draw=0 * rows)
    samples = sample(state.params["policy"], prompts, jax.random.fold_in(key, 2 * i))
    said = zip(np.array(samples.tokens), np.array(samples.attention_mask), strict=True)
    texts = ["".join(LETTERS[token] for token in row[mask]) for row, mask in said]
    scores = np.array([reward(text) for text in texts], np.float32)
    if i % 10 == 0:
        print(f"iteration {i:2}  score {scores.mean():5.2f}  {texts[0]}", flush=True)
    batch = rollout.with_rewards(annotate(state.params, policy, samples), scores, cfg)
    state, _ = update(state, {}, jnp.float32(0.05), batch, jax.random.fold_in(key, 2 * i + 1))
