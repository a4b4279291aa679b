"""The time of one call of a compiled program, measured here on arrays that are made up for it."""

import time

import jax
import jax.numpy as jnp

from rlhf_jax.devices import memory

SECONDS, MOST = 1.0, 50  # calls are timed for about so long, and no more than so many
LONG = 1e13  # operations of a program that a plan does not call on a CPU: minutes


def seconds_of(lowered, args: tuple, operations: float, steps: bool) -> float | None:
    """The mean time of a few calls of a lowered program, after one that is not timed.

    `args` are its arguments as `jax.ShapeDtypeStruct`. The results of a program that `steps` begin with the
    next value of its first argument, which it is donated; the host does not wait for each of its calls, as in
    training. None where the program would take more than the memory that is there, or, on a CPU, about
    `operations` of more than `LONG`.
    """
    on_cpu = jax.default_backend() == "cpu"
    needs = sum(memory.share(x, x.sharding) for x in jax.tree.leaves(args)) + memory.taken(lowered)
    if needs > memory.room() * (0.5 if on_cpu else memory.FULL) or (on_cpu and operations > LONG):
        return None
    compiled = lowered.compile()
    given = jax.block_until_ready(jax.tree.map(_made_up, args))

    def calls(n: int) -> float:
        nonlocal given
        began, results = time.perf_counter(), None
        for _ in range(n):
            results = compiled(*given)
            if steps:
                given = results[0], *given[1:]
            else:
                jax.block_until_ready(results)
        jax.block_until_ready(results)
        return (time.perf_counter() - began) / n

    calls(1)
    return calls(max(1, min(MOST, int(SECONDS / calls(1)))))


def _made_up(x: jax.ShapeDtypeStruct):
    """An array that no program refuses to learn from: True, ones, or numbers between 0 and 0.02."""

    def make():
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), x.shape)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.ones(x.shape, x.dtype)
        return jax.random.uniform(jax.random.key(0), x.shape, x.dtype, 0.0, 0.02)

    return jax.jit(make, out_shardings=x.sharding)()
