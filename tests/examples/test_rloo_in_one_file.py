"""The method on one page: it learns in every seed, and is the library's RLOO."""

import ast
import pathlib
import re
import runpy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import optimised

from rlhf_jax.algorithms import policy_gradient
from rlhf_jax.algorithms.rollout import RolloutConfig, make_annotate, with_rewards
from rlhf_jax.batches import Samples
from rlhf_jax.ops.reduce import normalise

PATH = pathlib.Path(__file__).parent.parent.parent / "examples/rloo_in_one_file.py"
FLOORS = (
    "jax",
    "optax",
    "functools",
    *(f"rlhf_jax.{x}" for x in ("batches", "models", "ops", "sampling")),
)


@pytest.fixture(scope="module")
def page():
    """The names that the file defines."""
    return runpy.run_path(str(PATH))


def test_it_is_one_page_over_the_ground_floors():
    text = PATH.read_text()
    assert len(text.splitlines()) <= 150
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert all(alias.name.startswith(FLOORS) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert str(node.module).startswith(FLOORS), node.module


def test_the_score_is_that_of_a_loop(page):
    tokens = np.random.default_rng(0).integers(0, 9, (64, 13))
    tokens[:, 0] %= 8
    mask = np.arange(13) < np.random.default_rng(1).integers(1, 14, (64, 1))
    samples = Samples(jnp.array(tokens), jnp.array(mask), jnp.array(mask[:, 1:]), None, None)
    for got, row, real in zip(page["score"](samples), tokens, mask, strict=True):
        seen, want = {row[0]}, 0
        for letter in row[real][1:]:
            want += 0 if letter == 8 else -1 if letter in seen else 1
            seen.add(letter)
        assert got == want


def test_its_step_is_the_librarys(page):
    """One gradient on the samples of a policy, by the page and by the shipped loss."""
    lm, cfg = page["lm"], policy_gradient.RLOO
    assert cfg.group == page["K"]
    params, reference = (lm.init(jax.random.key(i)) for i in (0, 1))

    @jax.jit
    def both(params, reference):
        prompts = page["draw_prompts"](jax.random.key(2))
        samples = page["sample"](params, prompts, jax.random.key(3))
        scores = page["score"](samples).astype(jnp.float32)
        taken = RolloutConfig(missing_eos_penalty=0.0)
        rollout = make_annotate(lm.policy_fn, taken)(params, reference, samples)
        rollout = with_rewards(rollout, scores, taken)
        batch, _ = policy_gradient.prepare(rollout, page["KL_COEF"], cfg)
        weights = normalise(policy_gradient.weights_of(batch, cfg))
        loss = partial(policy_gradient.loss, policy_fn=lm.policy_fn, cfg=cfg)
        want, _ = jax.grad(loss, has_aux=True)(params, {}, batch, weights)
        returns = page["returns_of"](reference, samples)[0]
        advantages = page["leave_one_out"](returns)
        got = jax.grad(page["loss"])(params, samples, advantages)
        return (got, advantages), (want, policy_gradient.advantages_of(returns, cfg), batch)

    (got, advantages), (want, expected, batch) = both(params, reference)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    mask = batch.samples.mask
    np.testing.assert_allclose(np.where(mask, advantages[:, None], 0), batch.advantages, atol=1e-4)
    assert np.std(advantages) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, want)


def test_a_seed_among_others_is_the_seed_alone(page):
    train, keys = partial(page["train"], iterations=4), jax.random.split(jax.random.key(5), 2)
    together = jax.jit(jax.vmap(train))(keys)
    alone = jax.jit(train)(keys[1])
    close = lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-4)
    jax.tree.map(close, together, alone)
    assert not np.allclose(together[1]["score"][0], together[1]["score"][1])


@optimised()
def test_the_score_rises_in_every_seed(page, capsys):
    page["main"]()
    _, *lines = capsys.readouterr().out.splitlines()
    numbers = [
        [float(x) for x in re.findall(r"-?[\d.]+", line.replace("->", " "))] for line in lines
    ]
    assert len(numbers) == page["SEEDS"]
    for _, first, last, nats, tokens in numbers:
        assert first < 1 and last > first + 3 and last > 3.5
        assert 0 < nats < 40 and 1 <= tokens <= page["T"]
