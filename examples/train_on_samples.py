"""Policy gradient on samples that another engine drew, with the log-probabilities it wrote down.

python examples/train_on_samples.py [SAMPLES.jsonl]     ten seconds on a CPU

A row of the file is {"prompt": [ids], "response": [ids], "logprobs": [nats], "score": number}, with one
log-probability for each token of the response, as the engine drew it. Without a file a small one is
written first, by a model that is then thrown away; the mean score goes from about 2 to 5.

An engine is never quite the policy that learns: its kernels round otherwise, or its weights are older.
`recompute_logprobs` asks the learner what it thinks of the samples, and `importance_cap` weighs each
token by learner's / engine's probability, at most 2 (Yao et al., 2025).
"""

import json
import pathlib
import sys
import tempfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import sampling, train_step
from rlhf_jax.algorithms import policy_gradient, rollout, sft
from rlhf_jax.batches import Prompts, Samples, Sequences
from rlhf_jax.models import networks

T, D = 12, 32  # columns of a written response; width of the model
KEY = jax.random.key(0)


def net(params, tokens, attention_mask):
    """Read off the token in each column: logits [B, L, V] of the next one. Your own model goes here."""
    return jnp.tanh(params["in"][tokens]) @ params["out"]


def init(key, vocabulary):
    """The parameters of `net`."""
    return {
        "in": jax.random.normal(jax.random.fold_in(key, 0), (vocabulary, D)),
        "out": 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (D, vocabulary)),
    }


lm = networks.from_logits(net)


def draw(params, rows, vocabulary, key):
    """Samples of one-token prompts, and their score: how often a token is above the one before it."""
    prompts = Prompts(
        tokens=jnp.arange(rows)[:, None] % vocabulary,
        attention_mask=jnp.ones((rows, 1), bool),
        index=jnp.arange(rows),
        draw=jnp.zeros(rows, jnp.int32),
    )
    sample = jax.jit(sampling.make_sample(lm, sampling.SampleConfig(length=T, stop=(0,))))
    seen = jax.device_get(sample(params, prompts, key))
    scores = np.sum((np.diff(seen.tokens) > 0) & seen.mask, axis=1).astype(np.float32)
    return seen, scores


def write_samples(path):
    """What an engine would leave behind; token 0 ends a response."""
    seen, scores = draw(init(jax.random.fold_in(KEY, 9), 8), 2048, 8, KEY)
    with open(path, "w") as file:
        for tokens, mask, logprobs, score in zip(
            seen.tokens, seen.mask, seen.logprobs, scores, strict=True
        ):
            row = {
                "prompt": tokens[:-T].tolist(),
                "response": tokens[-T:][mask].tolist(),
                "logprobs": logprobs[mask].tolist(),
                "score": float(score),
            }
            file.write(json.dumps(row) + "\n")


def read_samples(path):
    """(Samples, scores [B]): prompts padded on the left, responses on the right."""
    rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    P, T = (max(len(row[name]) for row in rows) for name in ("prompt", "response"))
    tokens, real = np.zeros((len(rows), P + T), np.int32), np.zeros((len(rows), P + T), bool)
    logprobs = np.zeros((len(rows), T), np.float32)
    for i, row in enumerate(rows):
        if len(row["logprobs"]) != len(row["response"]):
            raise ValueError(f"row {i} of {path} has not one log-probability for each token")
        start, end = P - len(row["prompt"]), P + len(row["response"])
        tokens[i, start:end], real[i, start:end] = row["prompt"] + row["response"], True
        logprobs[i, : end - P] = row["logprobs"]
    scores = np.array([row["score"] for row in rows], np.float32)
    ended = np.array([0 in row["response"] for row in rows])
    return Samples(tokens, real, real[:, P:], logprobs, ended), scores


def main(path):
    """Imitates the samples, to have a policy; then learns from their scores."""
    samples, scores = read_samples(path)
    held_out = np.arange(len(scores)) % 4 == 0  # a quarter says what became of the score
    part = lambda chosen: (jax.tree.map(lambda x: x[chosen], samples), scores[chosen])
    (samples, scores), (other, other_scores) = part(~held_out), part(held_out)
    vocabulary = int(np.max(samples.tokens)) + 1

    tx = optax.adam(1e-2)
    state = train_step.init_state(init(KEY, vocabulary), tx)
    imitate = jax.jit(sft.make_train_step(lm.policy_fn, tx))
    said = Sequences(samples.tokens, samples.attention_mask, samples.mask)
    for _ in range(300):
        state, metrics = imitate(state, {}, said)
    print(f"imitated {len(scores)} samples: {metrics['sft/loss']:.3f} nats a token")

    start = state.params
    # the learner's own log-probabilities, beside the engine's
    cfg = rollout.RolloutConfig(missing_eos_penalty=0.0, recompute_logprobs=True)
    annotate = jax.jit(rollout.make_annotate(lm.policy_fn, cfg))
    pg = replace(policy_gradient.REINFORCE, importance_cap=2.0)
    update = jax.jit(policy_gradient.make_update(lm.policy_fn, tx, pg))
    state = train_step.init_state(start, tx)

    def expected(params):
        """The score under `params` by the weights of whole responses, and of how many it is a mean."""
        logprobs = np.array(annotate(params, start, other).logprobs)
        w = np.exp(np.sum(logprobs - other.logprobs, axis=1))
        return np.sum(w * other_scores) / np.sum(w), np.sum(w) ** 2 / np.sum(w**2)

    for i in range(41):
        seen = annotate(state.params, start, samples)
        batch = rollout.with_rewards(seen, jnp.array(scores), cfg)
        if i % 10 == 0:
            score, effective = expected(state.params)
            print(f"update {i:2}  score {score:5.2f} (as of {effective:.0f} samples)", end="  ")
        state, metrics = update(state, {}, jnp.float32(0.1), batch, KEY)
        if i % 10 == 0:
            print(
                f"KL to the engine {metrics['pg/sampler_kl']:.3f} nats a token, "
                f"weights capped {100 * metrics['pg/importance_capped']:.1f}%",
                flush=True,
            )
    return start, state.params, vocabulary


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "samples.jsonl"
            write_samples(path)
            before, after, vocabulary = main(path)
        drawn = [draw(params, 2048, vocabulary, KEY)[1].mean() for params in (before, after)]
        print("sampled anew: score {:.2f}, after training {:.2f}".format(*drawn))
