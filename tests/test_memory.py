"""What a program needs: its arrays, what it works in, and a warning where that is more than there is."""

import jax
import jax.numpy as jnp

from rlhf_jax import memory

N = 512
SQUARE = 4 * N * N  # bytes of a matrix


def chain(x):
    """Two products, of which the first has to stand somewhere."""
    return jnp.sin(x @ x) @ x


def test_what_a_program_takes_beside_its_arguments_is_what_it_gives_and_works_in():
    x = jnp.ones((N, N))
    taken = memory.more(jax.jit(chain), x)
    assert 2 * SQUARE <= taken <= 3 * SQUARE
    donated = memory.more(jax.jit(chain, donate_argnums=0), x)
    assert donated <= taken - SQUARE


def test_what_is_held_is_every_array_of_the_device():
    before = memory.held()
    x = jnp.ones((N, N)).block_until_ready()
    assert memory.held() - before == SQUARE
    del x


def test_it_is_told_once_and_warned_of_where_it_does_not_fit(capsys, monkeypatch):
    x = jnp.ones((N, N))
    fn = memory.told("update", jax.jit(chain), "--model.remat")
    jax.tree.map(lambda a, b: None, fn(x), fn(x))
    said = capsys.readouterr()
    assert said.out.count("update: memory") == 1 and not said.err
    monkeypatch.setattr(memory, "room", lambda: SQUARE)
    memory.told("update", jax.jit(chain), "--model.remat")(x)
    said = capsys.readouterr()
    assert "of 1.0 MB a device" in said.out
    assert said.err.startswith("warning: update may not fit (") and "try --model.remat" in said.err


def test_a_training_step_needs_less_where_less_is_kept():
    """Checkpointed, the same gradient works in less: what the remedies say."""
    deep = lambda f: lambda x: jnp.sum(f(f(f(f(x)))))
    layer = lambda x: jnp.tanh(jnp.sin(x @ x) @ x)
    x = 0.01 * jnp.ones((N, N))
    whole = memory.more(jax.jit(jax.grad(deep(layer))), x)
    less = memory.more(jax.jit(jax.grad(deep(jax.checkpoint(layer)))), x)
    assert less < 0.8 * whole
