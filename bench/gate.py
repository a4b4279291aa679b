"""What compiled programs cost, beside bare JAX: it fails where one costs a tenth more than is recorded.

    python -m bench gate            # compares with gate.json
    python -m bench gate --write    # records, for this version of jaxlib, what is measured

XLA says of a compiled program how many operations it does, how many bytes it reads and writes, and how
many its temporary arrays take. Nothing runs, so a busy machine changes nothing. The numbers are divided by
those of a bare training step or generation of the same shape, compiled in the same process. A copy of the
state, a product more or a recomputed layer shows; the time that a kernel takes does not.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import jaxlib
import optax

from bench import models, works
from bench.sides import bare
from rlhf_jax import optimizer, sampling, train_step
from rlhf_jax.algorithms import policy_gradient, ppo, preference, reward_model, rollout, sft
from rlhf_jax.batches import Comparisons, PreferenceBatch, Prompts, Sequences
from rlhf_jax.bounds import Settings
from rlhf_jax.models import networks

RECORD = pathlib.Path(__file__).parent / "gate.json"
MORE = 1.1  # of the recorded ratio
ROWS, LENGTH, RESPONSE = 8, 128, 64
GENERATED = {"sample"}  # beside bare generation; all others are beside a bare training step


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the gate."""

    write: bool = False
    """Record what is measured for this version of jaxlib, in the place of what was."""


def cost(fn: Callable, *args, donate=()) -> dict[str, float]:
    """Operations, bytes read and written, and bytes of temporary arrays, of `fn` compiled for shapes."""
    compiled = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
    found, taken = compiled.cost_analysis(), compiled.memory_analysis()
    assert isinstance(found, dict) and taken is not None
    return {
        "operations": found["flops"],
        "bytes": found["bytes accessed"],
        "temporary": taken.temp_size_in_bytes,
    }


def whole(rows: int, *shape: int, dtype=jnp.float32):
    """The shape of an array."""
    return jax.ShapeDtypeStruct((rows, *shape), dtype)


def sequences(response: int = RESPONSE) -> Sequences:
    """The shapes of a batch of texts."""
    of = partial(whole, ROWS, LENGTH)
    return Sequences(of(dtype=jnp.int32), of(dtype=bool), whole(ROWS, response, dtype=bool))


def bare_costs(shape: works.Shape) -> Iterator[tuple[str, dict[str, float]]]:
    """What a training step and a generation cost without the library."""
    D, M, V = shape.d_model, shape.d_mlp, shape.vocab_size
    sizes = dict.fromkeys([f"self_attn.{x}_proj" for x in "qkvo"], (D, D))
    sizes |= {"mlp.gate_proj": (D, M), "mlp.up_proj": (D, M), "mlp.down_proj": (M, D)}
    sizes |= dict.fromkeys(["input_layernorm", "post_attention_layernorm"], (D,))
    weights = {
        f"model.layers.{i}.{name}.weight": whole(*size)
        for i in range(shape.layers)
        for name, size in sizes.items()
    }
    weights |= {"model.embed_tokens.weight": whole(V, D), "lm_head.weight": whole(D, V)}
    weights |= {"model.norm.weight": whole(D)}
    config = {
        "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers, "hidden_size": D,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    }  # fmt: skip
    tx = optax.chain(optax.clip_by_global_norm(works.CLIP), optax.adam(works.LR))

    def step(state, tokens):
        loss, grads = jax.value_and_grad(bare.loss_of)(state[0], tokens, config=config)
        updates, moments = tx.update(grads, state[1])
        return (optax.apply_updates(state[0], updates), moments), loss

    tokens = whole(ROWS, LENGTH, dtype=jnp.int32)
    yield "step", cost(step, (weights, jax.eval_shape(tx.init, weights)), tokens, donate=0)
    generate = partial(
        bare.generate, length=RESPONSE, stops=jnp.array([-1]), greedy=False, config=config
    )
    prompts = whole(ROWS, LENGTH - RESPONSE, dtype=jnp.int32)
    yield "generation", cost(generate, weights, prompts, jax.eval_shape(jax.random.key, 0))


def our_costs(shape: works.Shape) -> Iterator[tuple[str, dict[str, float]]]:
    """What the library's compiled functions cost."""
    lm, key = networks.language_model(models.config(shape)), jax.eval_shape(jax.random.key, 0)
    tx = optimizer.make(optimizer.OptimizerConfig(lr=works.LR, schedule="constant"), 1)
    state_of = lambda params: jax.eval_shape(partial(train_step.init_state, tx=tx), params)
    params, texts, ones = jax.eval_shape(lm.init, key), sequences(), whole(ROWS)
    pairs = Comparisons(texts, texts, ones, ones)
    step = sft.make_train_step(lm.policy_fn, tx)
    yield "sft", cost(step, state_of(params), {}, sequences(LENGTH - 1), donate=0)
    judge = networks.reward_model(lm)
    scored = jax.eval_shape(judge.init, key, params)
    step = reward_model.make_train_step(judge.fn, tx)
    yield "reward", cost(step, state_of(scored), {}, pairs, donate=0)
    compared = PreferenceBatch(pairs, ones, ones)
    cfg = preference.PreferenceConfig(beta=works.BETA)
    step = preference.make_train_step(lm.policy_fn, tx, cfg)
    yield "dpo", cost(step, state_of(params), {}, compared, donate=0)
    prompt = partial(whole, ROWS, LENGTH - RESPONSE)
    index = whole(ROWS, dtype=jnp.int32)
    prompts = Prompts(prompt(dtype=jnp.int32), prompt(dtype=bool), index=index, draw=index)
    sample = sampling.make_sample(lm, sampling.SampleConfig(length=RESPONSE))
    samples = jax.eval_shape(sample, params, prompts, key)
    yield "sample", cost(sample, params, prompts, key)
    critic, how = networks.actor_critic(lm), rollout.RolloutConfig(missing_eos_penalty=0.0)
    both = jax.eval_shape(critic.init, params)
    annotate = rollout.make_annotate_with_values(lm.policy_fn, critic.fn, how)
    rolled = jax.eval_shape(annotate, both, params, samples)
    yield "annotate", cost(annotate, both, params, samples)
    update = ppo.make_update(critic.fn, tx, ppo.PPOConfig())
    coefficient = jax.ShapeDtypeStruct((), jnp.float32)
    yield "ppo", cost(update, state_of(both), {}, coefficient, rolled, key, donate=0)
    alone = rollout.make_annotate(lm.policy_fn, how)
    rolled = jax.eval_shape(alone, params, params, samples)
    update = policy_gradient.make_update(lm.policy_fn, tx, policy_gradient.PolicyGradientConfig())
    yield "rloo", cost(update, state_of(params), {}, coefficient, rolled, key, donate=0)


def ratios() -> dict[str, dict[str, float]]:
    """Each program's costs divided by those of its bare twin."""
    shape = replace(works.MODELS["small"], layers=1)  # XLA counts the body of a loop once
    beside = dict(bare_costs(shape))
    found = {}
    for name, costs in our_costs(shape):
        twin = beside["generation" if name in GENERATED else "step"]
        found[name] = {what: round(x / twin[what], 3) for what, x in costs.items()}
    return found


def losses(now: dict[str, dict[str, float]], before: dict[str, dict[str, float]]) -> list[str]:
    """The programs that cost more than `MORE` times what is recorded."""
    return [
        f"{name}: {what} is {now[name][what]:.3f} of bare JAX's, and {recorded:.3f} is recorded"
        for name, costs in before.items()
        for what, recorded in costs.items()
        if now[name][what] > MORE * recorded
    ]


def main(cfg: Config) -> int:
    """Prints the ratios, and returns 1 where one is a tenth above the recorded one."""
    now, version = ratios(), jaxlib.version.__version__
    for name, costs in now.items():
        print(f"{name:9}", "  ".join(f"{what} {x:.3f}" for what, x in costs.items()))
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if cfg.write:
        RECORD.write_text(json.dumps(record | {version: now}, indent=1) + "\n")
        return 0
    if version not in record:
        print(
            f"note: {RECORD.name} has no jaxlib {version}: python -m bench gate --write records it"
        )
        return 0
    lost = losses(now, record[version])
    for line in lost:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(lost))
