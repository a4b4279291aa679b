"""RLOO (Ahmadian et al., 2024) on one page: the whole loop, as one pure function that maps over seeds.

python examples/rloo_in_one_file.py     half a minute on one core; the mean score goes from about -1 to 6

A prompt is one letter. A response is paid 1 for every letter that was not there before and -1 for every
letter that was, so the best one names the seven others once each and ends: a score of 7. The policy is a
transformer with random parameters, and the same parameters are the reference of the KL penalty.

Shapes: N prompts, K responses to each, B = N K rows, P = 1 prompt column, T response columns, L = P + T.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops import kl
from rlhf_jax.sampling import SampleConfig, make_sample

LETTERS, EOS = 8, 8  # tokens 0 to 7 are letters, token 8 ends a response
N, K, T = 32, 4, 12
KL_COEF = 0.05  # what a nat of KL(policy || reference) costs, in units of the score
SEEDS, ITERATIONS = 4, 100

lm = networks.language_model(
    ModelConfig(vocab_size=LETTERS + 1, context=1 + T, layers=2, d_model=32, heads=2, bias=False)
)
sample = make_sample(lm, SampleConfig(length=T, stop=(EOS,)))
tx = optax.adam(3e-3)


def draw_prompts(key):
    """N random letters, each in K adjacent rows; a row's noise comes from its `index` and its `draw`."""
    rows = jnp.arange(N * K)
    letters = jnp.repeat(jax.random.randint(key, (N, 1), 0, LETTERS), K, axis=0)  # [B, 1]
    real = jnp.ones_like(letters, bool)  # [B, 1]: no prompt is padded
    return Prompts(letters, real, index=rows // K, draw=rows % K)


def score(samples: Samples):
    """New letters less repeated ones [B]."""
    said = jax.nn.one_hot(samples.tokens, LETTERS)  # [B, L, 8], all zero for EOS
    said = jnp.where(samples.attention_mask[..., None], said, 0.0)
    counts = jnp.sum(said, axis=1)  # [B, 8]: how often each letter is there, the prompt's too
    letters, distinct = jnp.sum(counts, axis=1), jnp.sum(counts > 0, axis=1)
    return (distinct - 1) - (letters - distinct)


def leave_one_out(returns):
    """Each return [B] less the mean of the other K - 1 of its prompt: a baseline that needs no critic."""
    groups = returns.reshape(N, K)
    others = (jnp.sum(groups, axis=1, keepdims=True) - groups) / (K - 1)
    return (groups - others).reshape(-1)


def response_logprobs(params, samples: Samples):
    """Log-probability of each response [B]: the sum over its own tokens, EOS included."""
    logprobs, _ = lm.policy_fn(params, samples.tokens, samples.attention_mask, last=T)  # [B, T]
    return jnp.sum(jnp.where(samples.mask, logprobs, 0.0), axis=1)


def returns_of(reference, samples: Samples):
    """Returns, scores and KL estimates of all responses, each [B]. The KL penalty is a part of the return."""
    scores = score(samples)
    logprobs = jnp.sum(samples.logprobs, axis=1)  # as sampled; [B, T] is zero after the end
    divergence = kl.k1(logprobs, response_logprobs(reference, samples))  # in nats
    return scores - KL_COEF * divergence, scores, divergence


def loss(params, samples: Samples, advantages):
    """The negative policy gradient objective: its gradient is the mean of -A grad log pi(response)."""
    return -jnp.mean(advantages * response_logprobs(params, samples))


def iteration(reference, carry, key):
    """One iteration: sample, score, compare, update."""
    params, opt_state = carry
    prompt_key, sample_key = jax.random.split(key)

    # sample: B responses of the policy as it is
    samples = sample(params, draw_prompts(prompt_key), sample_key)

    # score: a program is the reward here; a reward model or a person would stand in its place
    returns, scores, divergence = returns_of(reference, samples)  # [B] each

    # compare: a response above the others to its prompt becomes likelier, one below less likely
    advantages = leave_one_out(returns)  # [B]

    # update: samples are used once, so the policy that learns is the one that sampled and needs no ratio
    grads = jax.grad(loss)(params, samples, advantages)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)

    metrics = {
        "score": jnp.mean(scores),
        "kl": jnp.mean(divergence),
        "length": jnp.mean(jnp.sum(samples.mask, axis=1)),
    }
    return (params, opt_state), metrics


def train(rng, iterations=ITERATIONS):
    """(parameters, metrics [iterations]) of one run. Pure: `jax.jit` and `jax.vmap` take it as it is."""
    init_key, loop_key = jax.random.split(rng)
    reference = lm.init(init_key)
    start = reference, tx.init(reference)
    keys = jax.random.split(loop_key, iterations)
    (params, _), metrics = jax.lax.scan(partial(iteration, reference), start, keys)
    return params, metrics


def main():
    """All seeds in one program, and a line for each."""
    _, metrics = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), SEEDS))
    print(f"seed   score: first -> last ten of {ITERATIONS} iterations   KL (nats)   tokens")
    for seed in range(SEEDS):
        first = metrics["score"][seed, 0]
        last = {name: jnp.mean(x[seed, -10:]) for name, x in metrics.items()}
        print(
            f"{seed:4}   {first:12.2f} -> {last['score']:.2f} {last['kl']:32.2f} {last['length']:8.1f}"
        )


if __name__ == "__main__":
    main()
