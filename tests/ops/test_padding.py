import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import padding

MASK = np.random.default_rng(0).random((16, 7)) < 0.5


def test_positions_match_the_published_fixture():
    # lm-human-preferences: [t, PAD, PAD, a, b, c]
    mask = jnp.array([[1, 0, 0, 1, 1, 1]], bool)
    np.testing.assert_array_equal(padding.position_ids(mask), [[0, 1, 1, 1, 2, 3]])


def test_left_and_right_padding_keep_the_real_tokens_in_order():
    tokens = np.random.default_rng(1).integers(0, 99, MASK.shape)
    for pad, end in [(padding.left_pad, slice(None, None, -1)), (padding.right_pad, slice(None))]:
        moved, mask = pad(jnp.array(tokens), jnp.array(MASK))
        for b in range(len(tokens)):
            n = MASK[b].sum()
            np.testing.assert_array_equal(np.asarray(mask)[b][end], np.arange(7) < n)
            np.testing.assert_array_equal(
                np.asarray(moved)[b][np.asarray(mask)[b]], tokens[b][MASK[b]]
            )


def test_a_response_is_real_to_its_first_stop_token_at_or_after_a_column():
    tokens = np.random.default_rng(2).integers(0, 5, (64, 8))
    for after in (0, 3):
        got = np.asarray(padding.until_stop(jnp.array(tokens), (1, 4), after))
        for row, mask in zip(tokens, got, strict=True):
            ends = [t for t in range(after, 8) if row[t] in (1, 4)]
            np.testing.assert_array_equal(mask, np.arange(8) <= (ends[0] if ends else 7))


def test_last_real_is_the_last_true_column():
    got = padding.last_real(jnp.array(MASK))
    want = [np.flatnonzero(m)[-1] if m.any() else MASK.shape[1] - 1 for m in MASK]
    np.testing.assert_array_equal(got, want)
