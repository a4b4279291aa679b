"""Low-rank adapters: x W becomes x W + alpha / rank (x A) B, and only A and B are trained (Hu et al.,
2022).

    base, trained = lora.split(key, params, cfg)
    update = lora.over_base(lambda fn: ppo.make_update(fn, tx, ppo_cfg), actor_critic_fn, cfg)
    state = train_step.init_state(trained, tx)                     # moments of the adapters only
    state, metrics = update(state, {"base": base}, kl_coef, rollout, rng)
    params = lora.join(base, state.params, cfg)                    # parameters for any network's functions

The adapters are leaves beside the kernel that they adapt, so trees with and without them are parameters of
one network: the reference is `base`, and needs no copy. Steps need not know of adapters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rlhf_jax.bounds import Positive, Settings, Whole


@dataclass(frozen=True)
class LoraConfig(Settings):
    """Low-rank adapters of the transformer's matrices; reward and value heads are trained in full."""

    _main = ("rank",)

    rank: Whole = 0
    """Rank r of each adapter; 0: no adapters, all parameters are trained."""
    alpha: Positive = 16.0
    """Adapter outputs are scaled by alpha / rank."""
    matrices: tuple[str, ...] = ("query", "value")
    """Matrices to adapt, from query, key, value, attention_out, gate, up and down."""

    def _conditions(self, at: str):
        if self.rank and not self.matrices:
            raise ValueError(f"{at}matrices = (): name one, or set {at}rank to 0")

    def _unread(self) -> dict[str, str]:
        return {} if self.rank else dict.fromkeys(("alpha", "matrices"), "rank = 0 adapts nothing")


def split(key: jax.Array, params, cfg: LoraConfig):
    """(base, trained), which `join` combines into parameters of the same function as `params`.

    `trained` holds, for each matrix [layers, n, m] of each transformer in the tree, float32 A [layers, n,
    r], uniform within 1 / sqrt(n), and B [layers, r, m], zero; and all leaves outside transformers. No
    array is copied. Without adapters `base` is empty and everything is trained.

    Raises ValueError for an unknown matrix.
    """
    if not cfg.rank:
        return {}, params
    if "blocks" in params:
        adapters = {}
        for i, name in enumerate(cfg.matrices):
            if "kernel" not in params["blocks"].get(name, {}):
                known = [x for x, block in params["blocks"].items() if "kernel" in block]
                raise ValueError(
                    f'lora.matrices has "{name}": this model has {", ".join(sorted(known))}'
                )
            layers, n, m = params["blocks"][name]["kernel"].shape
            shape, bound = (layers, n, cfg.rank), n**-0.5
            a = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-bound, maxval=bound)
            adapters[name] = {"lora_a": a, "lora_b": jnp.zeros((layers, cfg.rank, m))}
        return params, {"blocks": adapters}
    base, trained = {}, {}
    for i, (name, x) in enumerate(params.items()):
        if isinstance(x, dict):
            base[name], trained[name] = split(jax.random.fold_in(key, i), x, cfg)
        else:
            trained[name] = x
    return base, trained


def join(base, trained, cfg: LoraConfig):
    """Parameters with adapters, B times alpha / rank; arrays of `base` are shared, not copied."""
    if not isinstance(trained, dict):
        return trained
    joined = dict(base)
    for name, x in trained.items():
        joined[name] = (
            x * (cfg.alpha / cfg.rank) if name == "lora_b" else join(base.get(name, {}), x, cfg)
        )
    return joined


def merge(params):
    """Equivalent parameters without adapters: W + A B, summed in float32 and stored in W's dtype.

    NumPy arrays give NumPy arrays, and sharded arrays are merged in place.
    """
    if not isinstance(params, dict):
        return params
    merged = {name: merge(x) for name, x in params.items() if not name.startswith("lora_")}
    if "lora_a" in params:
        kernel, a, b = (params[x].astype("float32") for x in ("kernel", "lora_a", "lora_b"))
        merged["kernel"] = (kernel + a @ b).astype(params["kernel"].dtype)
    return merged


def over_base(make: Callable, fn: Callable, cfg: LoraConfig) -> Callable:
    """`make(fn)`, a step or an update of (state, frozen, ...), with the frozen parameters in
    `frozen["base"]`.

    `fn(params, ...)` is a network's function, such as `policy_fn`; the state holds the trained part of
    `split`, so the base gets no gradient and no optimizer moments.
    """

    def step(state, frozen, *rest):
        def joined_fn(trained, *args, **kwargs):
            return fn(join(frozen["base"], trained, cfg), *args, **kwargs)

        return make(joined_fn)(state, frozen, *rest)

    return step
