"""The guessing game: its rules row by row, and its exact returns against brute force and against play."""

import itertools

import numpy as np
import pytest

from rlhf_jax.tasks import guessing
from rlhf_jax.tasks.guessing import END, TURN, WORDS, GuessingConfig

GAME = GuessingConfig()


def number(guess):
    return len(WORDS) + guess


def test_every_turn_is_answered_as_a_player_would_answer_it():
    """All texts of up to two words, against all secrets, by the rules in words."""
    words = guessing.vocabulary(GAME)
    texts = [(a,) for a in range(len(words))] + list(itertools.product(range(len(words)), repeat=2))
    rows = [(text, secret) for text in texts for secret in range(GAME.numbers)]
    tokens = np.full((len(rows), TURN), number(0), np.int32)  # what stands on padding looks right
    tokens[:, 1] = END
    mask = np.zeros((len(rows), TURN), bool)
    for i, (text, _) in enumerate(rows):
        tokens[i, : len(text)], mask[i, : len(text)] = text, True
    secret = np.array([secret for _, secret in rows], np.int32)
    same, reply, heard, reward, done = guessing.respond(secret, tokens, mask, cfg=GAME)

    for i, (text, held) in enumerate(rows):
        said = [words[token] for token in text]
        want = "what"
        if len(said) == 2 and said[0].isdigit() and said[1] == ".":
            guess, right = int(said[0]), held + 1
            want = "higher" if guess < right else "lower" if guess > right else "right"
        assert words[reply[i, 0]] == want
        assert done[i] == (want == "right")
        np.testing.assert_allclose(reward[i], (want == "right") - GAME.cost, rtol=1e-6)
    np.testing.assert_array_equal(same, secret)
    assert heard.all() and reward.dtype == np.float32


def brute_force(cfg):
    """The best return by trying every number at every history, the environment asked each time."""

    def best(secrets, turns):
        if not len(secrets) or not turns:
            return 0.0  # in sums over secrets, not means
        totals = []
        for guess in range(cfg.numbers):
            tokens = np.tile(np.array([number(guess), END], np.int32), (len(secrets), 1))
            _, reply, _, reward, done = guessing.respond(
                secrets, tokens, np.ones(tokens.shape, bool), cfg=cfg
            )
            going = [secrets[~done & (reply[:, 0] == word)] for word in np.unique(reply)]
            totals.append(reward.sum() + sum(best(left, turns - 1) for left in going))
        return max(totals)

    return best(np.arange(cfg.numbers, dtype=np.int32), cfg.turns) / cfg.numbers


@pytest.mark.parametrize(
    "cfg", [GAME, GuessingConfig(5, 2, 0.3), GuessingConfig(8, 3, 0.0), GuessingConfig(1, 1)]
)
def test_the_optimum_is_what_brute_force_finds(cfg):
    np.testing.assert_allclose(guessing.optimal_return(cfg), brute_force(cfg), atol=1e-6)


def test_binary_search_is_the_optimum_and_takes_17_turns_for_7_secrets():
    def binary(low, high, turn):
        return np.eye(GAME.numbers)[(low + high - 1) // 2]

    def from_below(low, high, turn):
        return np.eye(GAME.numbers)[low]

    want = 1 - GAME.cost * 17 / 7  # 1 secret in one turn, 2 in two, 4 in three
    np.testing.assert_allclose(guessing.optimal_return(GAME), want)
    np.testing.assert_allclose(guessing.expected_return(binary, GAME), want)
    # 1, 2, 3 and out: 3 of 7 are found, after 1, 2 and 3 turns
    want = 3 / 7 - GAME.cost * (1 + 2 + 5 * 3) / 7
    np.testing.assert_allclose(guessing.expected_return(from_below, GAME), want)


def test_the_return_of_random_play_is_exact():
    """Against its closed form, (1/n - cost) sum_t (1 - 1/n)^t, and against play."""
    n, rows, rng = GAME.numbers, 40_000, np.random.default_rng(0)
    exact = guessing.random_return(GAME)
    np.testing.assert_allclose(exact, (1 / n - GAME.cost) * sum((1 - 1 / n) ** t for t in range(3)))

    secret = rng.integers(n, size=rows).astype(np.int32)
    earned, alive = np.zeros(rows), np.ones(rows, bool)
    for _ in range(GAME.turns):
        turn = guessing.random_turns(rows, GAME, rng)
        *_, reward, done = guessing.respond(secret, turn, np.ones(turn.shape, bool), cfg=GAME)
        earned += np.where(alive, reward, 0)
        alive &= ~done
    assert abs(earned.mean() - exact) < 4 * earned.std() / rows**0.5


def test_turns_that_are_not_understood_count_as_turns():
    silent = lambda low, high, turn: np.zeros(GAME.numbers)
    np.testing.assert_allclose(
        guessing.expected_return(silent, GAME), -GAME.cost * GAME.turns, rtol=1e-12
    )
    half = lambda low, high, turn: np.full(GAME.numbers, 0.5 / GAME.numbers)
    p = 0.5 / GAME.numbers
    np.testing.assert_allclose(
        guessing.expected_return(half, GAME),
        (p - GAME.cost) * sum((1 - p) ** t for t in range(3)),
    )


def test_a_secret_belongs_to_its_prompt_and_every_number_is_as_likely():
    index = np.arange(7000, dtype=np.int32)
    secret = guessing.secrets(index, GAME, 0)
    counts = np.bincount(secret, minlength=7)
    assert len(counts) == 7 and np.all(np.abs(counts - 1000) < 4 * (1000 * 6 / 7) ** 0.5)
    other = index[::-1].repeat(2)  # another order, other neighbours, two draws of each
    np.testing.assert_array_equal(guessing.secrets(other, GAME, 0), secret[other])
    assert np.mean(guessing.secrets(index, GAME, 1) == secret) < 0.2  # 1/7 agree by chance
    prompts = guessing.prompts(index, 0 * index)
    assert (
        np.all(prompts.tokens == guessing.GUESS) and prompts.attention_mask.all()
    )  # tells nothing


def test_outcomes_and_text_of_a_game():
    right, lower = guessing.RIGHT, guessing.LOWER
    tokens = np.array(
        [[number(3), END, lower, right, END, lower], [number(0), END, right, 0, 0, 0]]
    )
    heard = np.array([[False, False, True, False, False, True], [False, False, True] + 3 * [False]])
    won, turns = guessing.outcomes(tokens, heard)  # a policy that says "right" has not won
    np.testing.assert_array_equal(won, [False, True])
    np.testing.assert_array_equal(turns, [2, 1])
    assert guessing.text(tokens[0], GAME) == "4 . lower right . lower"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(numbers=0), "GuessingConfig.numbers = 0: it must be 1 or more"),
        (dict(turns=0), "GuessingConfig.turns = 0"),
        (dict(cost=1.0), "GuessingConfig.cost = 1.0: .* below 1"),
        (dict(cost=-0.1), "GuessingConfig.cost = -0.1"),
    ],
)
def test_rules_that_make_no_game_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        GuessingConfig(**settings)
