import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import padding

MASK = np.random.default_rng(0).random((16, 7)) < 0.5
SEGMENTS = np.where(MASK, np.random.default_rng(3).integers(1, 4, MASK.shape), 0)


def test_positions_match_the_published_fixture():
    # lm-human-preferences: [t, PAD, PAD, a, b, c]
    mask = jnp.array([[1, 0, 0, 1, 1, 1]], bool)
    np.testing.assert_array_equal(padding.position_ids(mask), [[0, 1, 1, 1, 2, 3]])


def test_positions_and_sight_are_those_of_the_segment():
    got = padding.position_ids(jnp.array([[0, 2, 2, 0, 2, 5, 5, 0]]))
    np.testing.assert_array_equal(got, [[0, 0, 1, 0, 2, 0, 1, 0]])
    positions = padding.position_ids(jnp.array(SEGMENTS))
    seen = padding.visible_columns(jnp.array(SEGMENTS))
    for row, places, sight in zip(SEGMENTS, positions, seen, strict=True):
        want = [[a == b != 0 for b in row] for a in row]
        np.testing.assert_array_equal(sight, want)
        np.testing.assert_array_equal(places, [sum(want[t][:t]) for t in range(7)])


def test_one_segment_is_a_mask_of_true_and_false():
    ones = jnp.array(MASK, jnp.int32)
    positions = padding.position_ids(jnp.array(MASK))
    np.testing.assert_array_equal(padding.position_ids(ones), np.where(MASK, positions, 0))
    np.testing.assert_array_equal(
        padding.visible_columns(ones), padding.visible_columns(jnp.array(MASK)) & MASK[..., None]
    )


def test_segments_are_moved_and_found_as_real_tokens():
    tokens = np.random.default_rng(1).integers(0, 99, MASK.shape)
    segments = jnp.array(SEGMENTS)
    moved, mask = padding.right_pad(jnp.array(tokens), jnp.array(MASK))
    same, numbers = padding.right_pad(jnp.array(tokens), segments)
    np.testing.assert_array_equal(np.where(mask, same, 0), np.where(mask, moved, 0))
    np.testing.assert_array_equal(numbers > 0, mask)
    for b in range(len(tokens)):
        np.testing.assert_array_equal(numbers[b][mask[b]], SEGMENTS[b][MASK[b]])
    np.testing.assert_array_equal(padding.last_real(segments), padding.last_real(jnp.array(MASK)))


def test_right_padding_keeps_the_real_tokens_in_order():
    tokens = np.random.default_rng(1).integers(0, 99, MASK.shape)
    moved, mask = map(np.asarray, padding.right_pad(jnp.array(tokens), jnp.array(MASK)))
    for b in range(len(tokens)):
        np.testing.assert_array_equal(mask[b], np.arange(7) < MASK[b].sum())
        np.testing.assert_array_equal(moved[b][mask[b]], tokens[b][MASK[b]])


def test_last_real_is_the_last_true_column():
    got = padding.last_real(jnp.array(MASK))
    want = [np.flatnonzero(m)[-1] if m.any() else MASK.shape[1] - 1 for m in MASK]
    np.testing.assert_array_equal(got, want)
