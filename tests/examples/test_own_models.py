"""Networks of one's own, in Linen and in NNX, learn by the shipped steps and sample with their own cache."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

from rlhf_jax import sampling
from rlhf_jax.batches import Prompts
from rlhf_jax.models import networks

FOLDER = pathlib.Path(__file__).parent.parent.parent / "examples"


@pytest.fixture(scope="module")
def linen():
    return runpy.run_path(str(FOLDER / "linen_model.py"))


@pytest.fixture(scope="module")
def nnx():
    return runpy.run_path(str(FOLDER / "nnx_model.py"))


def test_the_linen_networks_score_rises(linen):
    scores = linen["main"](sft_steps=200, iterations=15)
    assert scores[0] < 2.6 and scores[-1] > scores[0] + 0.7, scores


def test_the_nnx_networks_score_rises(nnx):
    scores = nnx["main"](iterations=15)
    assert scores[0] < 0 and scores[-1] > scores[0] + 1.5, scores


def test_padding_on_the_left_changes_no_logits(linen, nnx):
    tokens = np.array([[1, 0, 1, 1]])
    real = np.ones(tokens.shape, bool)
    wide, mask = (np.pad(x, ((0, 0), (2, 0))) for x in (tokens, real))
    params = jax.jit(linen["net"].init)(jax.random.key(0), tokens, real)
    attention, recurrent = linen["net"].apply, lambda *inputs: nnx["read_policy"](*inputs)[1]
    for net, given in ((attention, params), (recurrent, nnx["policy"])):
        net = jax.jit(net)
        got, want = net(given, wide, mask)[:, 2:], net(given, tokens, real)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_state_as_a_cache_gives_the_samples_of_whole_rows(nnx):
    """The GRU's own prefill and decode, beside those of `from_logits`, which read every row again."""
    slow = networks.from_logits(lambda *inputs: nnx["read_policy"](*inputs)[1])
    real = np.arange(3) >= np.array([[0], [1], [2], [2]])
    prompts = Prompts(np.zeros((4, 3), int), real, np.arange(4), np.zeros(4, int))
    cfg = sampling.SampleConfig(length=6, stop=(nnx["EOS"],))
    both = [
        jax.jit(sampling.make_sample(lm, cfg))(nnx["policy"], prompts, jax.random.key(0))
        for lm in (nnx["lm"], slow)
    ]
    np.testing.assert_array_equal(both[0].tokens, both[1].tokens)
    np.testing.assert_allclose(both[0].logprobs, both[1].logprobs, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "want"), [("(())", 2), ("(()).", 2), ("((", -2), (")(", -2), ("()()(", 1), (".", 0)]
)
def test_brackets_are_paid_in_pairs(nnx, text, want):
    assert nnx["reward"](text) == want
