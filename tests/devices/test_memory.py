"""What a program needs: its arrays, what it works in, and a warning where that is more than there is."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from rlhf_jax.devices import memory, parallel
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig

N = 512
SQUARE = 4 * N * N  # bytes of a matrix


def chain(x):
    """Two products, of which the first has to stand somewhere."""
    return jnp.sin(x @ x) @ x


def test_what_a_program_takes_beside_its_arguments_is_what_it_gives_and_works_in():
    x = jnp.ones((N, N))
    taken = memory.more(jax.jit(chain), x)
    assert 2 * SQUARE <= taken <= 3 * SQUARE
    assert memory.more(jax.jit(jnp.sin), x) == SQUARE
    assert memory.more(jax.jit(jnp.sin, donate_argnums=0), x) == 0


def test_what_is_held_is_every_array_of_the_device():
    before = memory.held()
    x = jnp.ones((N, N)).block_until_ready()
    assert memory.held() - before == SQUARE
    spread = parallel.on_mesh().put_batch(x)
    assert [memory.held() - before for _ in range(2)] == [SQUARE + SQUARE // 8] * 2
    del x, spread


def test_it_is_told_once_and_warned_of_where_it_does_not_fit(capsys, monkeypatch):
    x = jnp.ones((N, N))
    fn = memory.announce_memory("update", jax.jit(chain), "--model.remat")
    jax.tree.map(lambda a, b: None, fn(x), fn(x))
    said = capsys.readouterr()
    assert said.out.count("update: memory") == 1 and not said.err
    monkeypatch.setattr(memory, "room", lambda: SQUARE)
    memory.announce_memory("update", jax.jit(chain), "--model.remat")(x)
    said = capsys.readouterr()
    assert "of 1.0 MB per device" in said.out
    assert said.err.startswith("warning: update may not fit (") and "try --model.remat" in said.err


def test_a_gradient_needs_less_where_less_is_kept():
    """What a remedy saves, by what the compiled gradient takes."""
    cfg = ModelConfig(vocab_size=512, context=64, layers=8, d_model=32, heads=2)
    tokens = jnp.ones((16, 64), jnp.int32)

    def taken(cfg):
        lm = networks.language_model(cfg)
        loss = lambda p, x: -jnp.mean(lm.policy_fn(p, x, x > 0, last=63)[0])
        params = jax.eval_shape(lm.init, jax.random.key(0))
        return memory.more(jax.jit(jax.grad(loss)), params, tokens)

    assert taken(replace(cfg, remat=True)) < 0.7 * taken(cfg)
