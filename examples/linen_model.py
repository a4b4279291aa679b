"""A network of one's own in Flax Linen, trained by the shipped steps: SFT on careless texts, then RLOO.

python examples/linen_model.py     half a minute on a CPU; right letters go from about 2 of 4 to 4

A prompt is four letters, and the right response is the same letters backwards. Half of the letters in the
demonstrations are drawn at random, so a policy that imitates them is wrong as often; a reward mends that.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import sampling, train_step
from rlhf_jax.algorithms import policy_gradient, rollout, sft
from rlhf_jax.batches import Prompts, Sequences
from rlhf_jax.models import networks

LETTERS, EOS = 8, 8  # tokens 0 to 7 are letters, token 8 ends a response
P, T, D = 4, 6, 32  # prompt and response columns, width
N, K = 64, 4  # prompts of an iteration, responses to each


class Net(nn.Module):
    """One block of causal attention."""

    @nn.compact
    def __call__(self, tokens, attention_mask):
        """Logits [B, L, V] of the token after each column."""
        real = attention_mask.astype(bool)
        at = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)  # padding on the left takes no position
        seen = nn.combine_masks(nn.make_causal_mask(tokens), nn.make_attention_mask(real, real))
        x = nn.Embed(LETTERS + 1, D)(tokens) + nn.Embed(P + T, D)(at)
        x += nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x), mask=seen)
        x += nn.Dense(D)(nn.gelu(nn.Dense(4 * D)(nn.LayerNorm()(x))))
        return nn.Dense(LETTERS + 1)(nn.LayerNorm()(x))


net = Net()
lm = networks.from_logits(lambda params, *inputs: net.apply({"params": params}, *inputs))


def demonstrations(rng, rows):
    """Prompts and the same letters backwards, each replaced by a random one with probability 1/2."""
    prompts, noise = rng.integers(0, LETTERS, (2, rows, P))
    said = np.where(rng.random((rows, P)) < 0.5, noise, prompts[:, ::-1])
    tokens = np.concatenate([prompts, said, np.full((rows, 1), EOS)], axis=1)
    return Sequences(tokens, np.ones(tokens.shape, bool), np.ones((rows, P + 1), bool))


def right(samples):
    """The number of letters of each response that are right [B], as floats."""
    prompts, said = np.split(np.array(samples.tokens), [P], axis=1)
    return np.sum(said[:, :P] == prompts[:, ::-1], axis=1).astype(np.float32)


def main(sft_steps=300, iterations=41):
    """Trains, prints the score of every tenth iteration, and gives those of all iterations."""
    key, rng, tx = jax.random.key(0), np.random.default_rng(0), optax.adam(3e-3)
    like = demonstrations(rng, 1)
    params = jax.jit(net.init)(key, like.tokens, like.attention_mask)["params"]

    imitate = jax.jit(sft.make_train_step(lm.policy_fn, tx))
    state = train_step.init_state(params, tx)
    for _ in range(sft_steps):
        state, metrics = imitate(state, {}, demonstrations(rng, 128))
    print(f"SFT: {metrics['sft/loss']:.2f} nats a token")

    cfg, reference = rollout.RolloutConfig(), state.params
    sample = jax.jit(sampling.make_sample(lm, sampling.SampleConfig(length=T, stop=(EOS,))))
    annotate = jax.jit(rollout.make_annotate(lm.policy_fn, cfg))
    update = jax.jit(policy_gradient.make_update(lm.policy_fn, tx, policy_gradient.RLOO))
    state, scores = train_step.init_state(reference, tx), []
    for i in range(iterations):
        letters = np.repeat(rng.integers(0, LETTERS, (N, P)), K, axis=0)  # K adjacent rows a prompt
        draw = np.tile(np.arange(K), N)
        prompts = Prompts(letters, np.ones(letters.shape, bool), np.arange(N * K) // K, draw)
        samples = sample(state.params, prompts, jax.random.fold_in(key, i))
        score = right(samples)
        batch = rollout.with_rewards(annotate(state.params, reference, samples), score, cfg)
        state, metrics = update(state, {}, jnp.float32(0.02), batch, key)
        scores.append(float(score.mean()))
        if i % 10 == 0:
            kl = metrics["objective/kl"]
            print(f"iteration {i:3}  score {scores[-1]:.2f}  KL {kl:5.2f} nats", flush=True)
    return scores


if __name__ == "__main__":
    main()
