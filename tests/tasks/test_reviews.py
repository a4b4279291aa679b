import itertools
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from rlhf_jax.people import annotators
from rlhf_jax.people.annotators import AnnotatorConfig, Pairs
from rlhf_jax.tasks import reviews, reviews_law

PROMPT = "the plot in this western"
BEST = 1.4 * 1.6 / reviews.SCALE  # the largest gold: a strong adjective of one's own, intensified


@pytest.fixture(scope="module")
def sample():
    return reviews.generate(0, 10_000, reviews.prompts())


def one_clause_responses(prompt):
    """Every response of one clause, spelled out independently of the generator."""
    aspect = prompt.split()[1]
    adjectives = [*reviews.GENERAL, *reviews.SPECIFIC[aspect]]
    for verb, adverb, adjective in itertools.product(
        ("was", "felt", "seemed"), ("", "very ", "absolutely ", "somewhat ", "a bit "), adjectives
    ):
        for phrase in (f"{verb} ", f"{verb} not ", f"never {verb} "):
            yield f"{phrase}{adverb}{adjective} ."


def test_the_world_is_as_large_as_it_says(sample):
    words = {word for review in sample for word in f"{review.prompt} {review.response}".split()}
    assert words == set(reviews.vocabulary())
    assert len(words) == 65
    assert len(set(reviews.prompts())) == 1280
    assert max(len(review.response.split()) for review in sample) <= 22
    assert len({review.response for review in sample}) > 5_000


def test_equal_seeds_give_equal_reviews_and_other_seeds_others():
    allowed = reviews.prompts()[:50]
    first = reviews.generate(3, 200, allowed)
    assert first == reviews.generate(3, 200, allowed)
    assert first != reviews.generate(4, 200, allowed)
    assert {review.prompt for review in first} <= set(allowed)


def test_the_prompt_split_is_a_partition_and_a_function_of_its_arguments():
    train, held_out = reviews.split_prompts(0.1, 0)
    assert len(held_out) == 128
    assert sorted(train + held_out) == sorted(reviews.prompts())
    assert (train, held_out) == reviews.split_prompts(0.1, 0)
    assert held_out != reviews.split_prompts(0.1, 1)[1]
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=r"data\.held_out = .* of 1280 prompts"):
            reviews.split_prompts(fraction, 0)


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("was gripping .", 1.4),
        ("felt not very good .", 0.8 * 1.3 * -0.6),
        ("never seemed a bit predictable .", -1.4 * 0.5 * -0.8),
        ("was good and the acting was bad .", 0.0),
        ("was good but the acting was bad .", (0.8 - 2 * 0.8) / 3),
        ("was good although the acting was bad .", (0.8 - 0.5 * 0.8) / 1.5),
        ("was wooden .", 0.0),  # another aspect's adjective
        ("was good but the music was witty .", 0.8 / 3),
        ("was good and the acting was great but the music was lovely .", (0.8 + 1.0 + 2.4) / 4),
    ],
)
def test_gold_is_the_arithmetic_done_by_hand(response, value):
    assert reviews.gold(PROMPT, response) == pytest.approx(value / reviews.SCALE)


@pytest.mark.parametrize(
    ("response", "value", "faults"),
    [
        ("was gripping", 1.4, 1),  # does not end
        ("was really gripping .", 0.0, 4),  # three words fit nowhere, and no clause is left
        ("was gripping . .", 1.4, 1),
        ("was gripping wow .", 1.4, 1),
        ("was great and the music was great .", 0.5, 1),  # an adjective again
        ("was great and the plot was superb .", 0.5, 1),  # an aspect again
        ("never was not good .", 0.8 * -0.6, 1),  # never and not: one of them is a stray
        ("", 0.0, 2),
        (".", 0.0, 1),
    ],
)
def test_every_fault_costs_four(response, value, faults):
    expected = max(value / reviews.SCALE - 4 * faults, -8)
    assert reviews.gold(PROMPT, response) == pytest.approx(expected)


def test_under_the_grammar_gold_has_mean_zero_and_standard_deviation_one(sample):
    gold = reviews.golds([r.prompt for r in sample], [r.response for r in sample])
    assert gold.dtype == np.float32
    assert abs(gold.mean()) < 4 / math.sqrt(len(gold))
    assert gold.std() == pytest.approx(1.0, abs=0.02)
    assert gold.max() <= BEST + 1e-6
    assert gold[0] == np.float32(reviews.gold(*sample[0]))


def test_the_mean_of_one_clause_is_zero_exactly():
    total = sum(
        math.exp(reviews.log_prob(PROMPT, response)) * reviews.gold(PROMPT, response)
        for response in one_clause_responses(PROMPT)
    )
    assert total == pytest.approx(0, abs=1e-12)


def test_the_worst_offenders_score_far_below_a_typical_review():
    offenders = [
        "",
        ".",
        "great great great .",
        "great " * 20 + ".",
        "absolutely gripping .",
        "was absolutely gripping was absolutely gripping .",
        "was absolutely gripping . was absolutely gripping .",
        "was absolutely gripping and the plot was absolutely gripping .",
        "was absolutely gripping" + " but the plot was absolutely gripping" * 3 + " .",
        "was absolutely gripping" + " although the music was absolutely gripping .",
        "was absolutely absolutely gripping .",
        "was absolutely gripping",
        "and the music was absolutely lovely .",
        "the plot was absolutely gripping .",
        "Was absolutely gripping .",
        "was absolutely gripping.",
    ]
    for offender in offenders:
        assert reviews.gold(PROMPT, offender) < -1.3, offender


def test_no_repetition_of_one_or_two_words_pays():
    words = reviews.vocabulary()
    for block in itertools.chain(((w,) for w in words), itertools.product(words, repeat=2)):
        for end in ((), (".",)):
            response = " ".join(block * 3 + end)
            assert reviews.gold(PROMPT, response) < -1.3, response


def test_a_greedy_adversary_finds_no_repeated_block_that_pays():
    rng, words = random.Random(0), reviews.vocabulary()
    for size in (3, 4, 5, 6) * 2:
        block = rng.choices(words, k=size)
        # a good start, so that the search is not lost among texts at the floor
        block[: min(size, 3)] = ["was", "absolutely", "gripping"][:size]
        score = lambda block: reviews.gold(PROMPT, " ".join([*(block * 2), "."]))
        for _ in range(2):
            for place in range(size):
                tries = [[*block[:place], word, *block[place + 1 :]] for word in words]
                block = max(tries, key=score)
        assert score(block) < -1.3, block


def test_a_hill_climber_over_all_texts_finds_nothing_better_than_the_best_review(sample):
    rng, words = random.Random(1), reviews.vocabulary()
    for review in sample[:4]:
        best = review.response.split()
        score = lambda text: reviews.gold(review.prompt, " ".join(text))  # noqa: B023
        for _ in range(3000):
            place, word = rng.randrange(len(best) + 1), [rng.choice(words)]
            cut = rng.choice((0, 1, 1, 2, 8))
            change = best[:place] + word * (rng.random() < 0.7) + best[place + cut :]
            best = max(best, change, key=score)
        assert score(best) <= BEST + 1e-6
        faults = reviews.log_prob(review.prompt, " ".join(best))
        assert math.isfinite(faults) or score(best) < BEST


@pytest.fixture(scope="module")
def laws():
    return {aspect: reviews_law.gold_law(aspect) for aspect in reviews.ASPECTS}


def test_the_law_of_gold_is_a_distribution_with_the_moments_that_are_promised(laws):
    for values, p in laws.values():
        assert np.all(np.diff(values) > 1e-9) and np.all(p > 0)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert p @ values == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose(values, -values[::-1], atol=1e-12)
        np.testing.assert_allclose(p, p[::-1], rtol=1e-9)
    variance = np.mean([p @ values**2 for values, p in laws.values()])
    assert math.sqrt(variance) == pytest.approx(1.0, abs=0.005)  # 0.9989
    assert max(values[-1] for values, _ in laws.values()) == pytest.approx(BEST, abs=1e-12)


def test_the_best_review_has_the_highest_gold_of_the_law(laws):
    for aspect, (values, _) in laws.items():
        rows = [{"prompt": f"the {aspect} of this new comedy"}]
        (best,) = reviews.TASK.best(rows)
        assert math.isfinite(reviews.log_prob(rows[0]["prompt"], best))
        assert reviews.TASK.gold(rows, [best])[0] == pytest.approx(values[-1])


def test_neither_two_clauses_nor_a_fourth_one_beat_the_best_review():
    aspect, prompt = "music", "the music in this western"
    best = reviews.best(prompt)
    spoken = lambda a, adverbs: [*clauses(a, ("was",), reviews.NEGATIONS, adverbs)]
    others = [a for a in reviews.ASPECTS if a != aspect]
    said = [(c, a, x) for c in ("and", "but", "although") for a in others
            for x in spoken(a, ("", "absolutely"))]  # fmt: skip
    two = [
        f"{one} {c} the {a} {x} ." for one in spoken(aspect, ("absolutely",)) for c, a, x in said
    ]
    four = [f"{best[:-2]} {c} the {a} {x} ." for c, a, x in said]
    assert max(reviews.gold(prompt, text) for text in two + four) < reviews.gold(prompt, best)


def test_generated_reviews_follow_the_law_of_gold(laws):
    for seed, aspect in enumerate(("plot", "pacing")):
        n = 15_000
        drawn = reviews.generate(seed, n, [f"the {aspect} in this western"])
        gold = np.sort([reviews.gold(*review) for review in drawn])
        values, p = laws[aspect]
        below = np.searchsorted(gold, values + 1e-9) / n
        # Kolmogorov and Smirnov; for a law of atoms the bound is more than kept
        assert np.abs(below - np.cumsum(p)).max() < 1.63 / math.sqrt(n)
        assert gold.std() == pytest.approx(math.sqrt(p @ values**2), abs=0.02)
        for x in (-1.0, 1.0):  # what a frontier is made of
            tilted = np.exp(x * gold)
            error = 4 * tilted.std() / math.sqrt(n)
            assert tilted.mean() == pytest.approx(p @ np.exp(x * values), abs=error)
        place = np.searchsorted(values, gold - 1e-9)
        np.testing.assert_allclose(values[place], gold, atol=1e-12)  # none that the law lacks


def clauses(aspect, verbs, negations, adverbs):
    """Every clause about an aspect, spelled out independently of the law."""
    adjectives = [*reviews.GENERAL, *reviews.SPECIFIC[aspect]]
    for parts in itertools.product(verbs, negations, adverbs, adjectives):
        verb, negation, adverb, adjective = parts
        words = (negation, verb, adverb) if negation == "never" else (verb, negation, adverb)
        yield " ".join([word for word in words if word] + [adjective])


def enumerated(aspects, most, spoken):
    """The probability of each gold, by spelling out all texts of up to `most` clauses."""
    masses, grown = defaultdict(float), [((aspects[0],), text) for text in spoken[aspects[0]]]
    for i in range(most):
        for _, text in grown:
            log_prob = reviews.log_prob(PROMPT, f"{text} .")
            if log_prob > -math.inf:  # some repeat an adjective
                value = round(reviews.gold(PROMPT, f"{text} ."), 9) + 0.0  # no -0
                masses[value] += math.exp(log_prob)
        if i + 1 < most:
            grown = [
                ((*said, aspect), f"{text} {connective} the {aspect} {clause}")
                for said, text in grown
                for aspect in aspects
                if aspect not in said
                for connective in reviews.CONNECTIVE_ODDS
                for clause in spoken[aspect]
            ]
    return masses


@pytest.mark.parametrize(
    ("aspects", "negations", "adverbs", "connectives", "stop"),
    [  # two clauses, then three; a verb changes nothing, and one will do
        (
            ("plot", "music", "acting", "pacing"),
            reviews.NEGATION_ODDS,
            {"": 0.6, "very": 0.4},
            reviews.CONNECTIVE_ODDS,
            (0.35, 1.0),
        ),
        pytest.param(
            ("plot", "music", "pacing"),
            {"": 0.7, "never": 0.3},
            {"absolutely": 1.0},
            {"and": 0.6, "although": 0.4},
            (0.35, 0.6, 1.0),
            marks=pytest.mark.more,
        ),
    ],
)
def test_the_law_of_gold_is_the_sum_over_all_texts_of_a_smaller_grammar(
    monkeypatch, aspects, negations, adverbs, connectives, stop
):
    """With log_prob as the witness."""
    monkeypatch.setattr(reviews, "ASPECTS", aspects)
    monkeypatch.setattr(reviews, "VERBS", {"was": 1.0})
    monkeypatch.setattr(reviews, "NEGATION_ODDS", negations)
    monkeypatch.setattr(reviews, "ADVERB_ODDS", adverbs)
    monkeypatch.setattr(reviews, "CONNECTIVE_ODDS", connectives)
    monkeypatch.setattr(reviews, "STOP_ODDS", stop)
    spoken = {a: list(clauses(a, ("was",), negations, adverbs)) for a in aspects}
    masses = enumerated(aspects, len(stop), spoken)
    assert sum(masses.values()) == pytest.approx(1, abs=1e-12)

    values, p = reviews_law.gold_law("plot")
    assert len(values) == len(masses)
    want = np.array([masses[value] for value in np.round(values, 9) + 0.0])
    np.testing.assert_allclose(p, want, rtol=1e-9)


def test_the_law_of_an_unknown_aspect_is_refused():
    with pytest.raises(ValueError, match="'weather' is no aspect"):
        reviews_law.gold_law("weather")


def test_a_prompt_without_an_aspect_is_refused():
    with pytest.raises(ValueError, match="'hello there' must name an aspect: one of plot"):
        reviews.gold("hello there", "was good .")


def test_log_probabilities_of_all_one_clause_responses_sum_to_the_odds_of_one_clause():
    responses = list(one_clause_responses(PROMPT))
    assert len(responses) == len(set(responses)) == 3 * 5 * 10 * 3
    total = sum(math.exp(reviews.log_prob(PROMPT, response)) for response in responses)
    assert total == pytest.approx(0.35, abs=1e-12)


def test_log_probabilities_of_all_continuations_sum_to_the_odds_of_going_on():
    """Two clauses: fix the first, and enumerate every second."""
    first = "was good"
    total = 0.0
    for aspect in reviews.ASPECTS:
        for connective in ("and", "but", "although"):
            for second in one_clause_responses(f"the {aspect} in this western"):
                text = f"{first} {connective} the {aspect} {second}"
                total += math.exp(reviews.log_prob(PROMPT, text))
    alone = math.exp(reviews.log_prob(PROMPT, f"{first} ."))
    assert total == pytest.approx(alone / 0.35 * 0.65 * 0.6, abs=1e-12)


def test_log_probabilities_are_the_frequencies_of_the_generator():
    drawn = Counter(r.response for r in reviews.generate(5, 15_000, [PROMPT]))
    for response, count in drawn.most_common(25):
        p = math.exp(reviews.log_prob(PROMPT, response))
        assert count == pytest.approx(15_000 * p, abs=5 * math.sqrt(15_000 * p))


def test_sides_follow_the_connective_in_the_log_probability_and_in_the_generator(sample):
    for connective, same in (("and", 0.85), ("but", 0.1), ("although", 0.1)):
        good = f"was gripping {connective} the music was great ."
        bad = f"was gripping {connective} the music was terrible ."
        ratio = reviews.log_prob(PROMPT, good) - reviews.log_prob(PROMPT, bad)
        assert ratio == pytest.approx(math.log(same / (1 - same)))
        side = lambda c: reviews.STRENGTH[c.adjective] * reviews.NEGATIONS[c.negation] > 0
        agree = []
        for review in sample:
            clauses = reviews.parse(*review).clauses
            for one, two in itertools.pairwise(clauses):
                if two.connective == connective:
                    agree.append(side(one) == side(two))
        assert np.mean(agree) == pytest.approx(same, abs=4 * 0.5 / math.sqrt(len(agree)))


def test_all_that_is_generated_has_a_finite_log_probability_and_no_fault(sample):
    for review in sample[:3000]:
        assert math.isfinite(reviews.log_prob(*review))
        assert reviews.gold(*review) >= -BEST - 1e-6


@pytest.mark.parametrize(
    "response",
    [
        "",
        "was good",
        "was very wooden .",
        "was good and the plot was bad .",
        "was good and the music was good .",
        "was great good .",
        "never was not good .",
        "was good and the music was bad but the humour felt great and the acting felt awful .",
    ],
)
def test_outside_the_grammar_the_log_probability_is_minus_infinity(response):
    assert reviews.log_prob(PROMPT, response) == -math.inf


def pairs_of(n, seed=0):
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(2, n))
    words = rng.integers(3, 20, size=(2, n))
    return Pairs(gold[0], gold[1], words[0], words[1])


def test_preference_probability_is_the_formula():
    one = lambda x: np.array([x], float)
    cfg = AnnotatorConfig(scale=2.0, noise=0.1, length_bias=0.25)
    p = annotators.preference_probability(one(1.0), one(0.5), one(4), one(6), cfg)
    # the logit is 2 x 0.5 + 0.25 x -2 = 0.5
    assert p[0] == pytest.approx(0.9 / (1 + math.exp(-0.5)) + 0.05)
    sure = AnnotatorConfig(scale=100.0, noise=0.2)
    p = annotators.preference_probability(one(1.0), one(0.0), one(1), one(1), sure)
    assert p[0] == pytest.approx(0.9)  # half of the coin tosses are right


def test_swapping_the_sides_gives_the_complement():
    pairs, cfg = pairs_of(100), AnnotatorConfig(length_bias=0.1)
    swapped = Pairs(pairs.gold_b, pairs.gold_a, pairs.words_b, pairs.words_a)
    p = annotators.preference_probability(*pairs, cfg)
    np.testing.assert_allclose(p + annotators.preference_probability(*swapped, cfg), 1)


def test_annotations_come_as_often_as_their_probability():
    n = 20_000
    gold_a, gold_b = np.full(n, 0.4), np.zeros(n)
    pairs = Pairs(gold_a, gold_b, np.full(n, 5), np.full(n, 9))
    cfg = AnnotatorConfig(scale=1.5, noise=0.2, length_bias=0.05)
    p = annotators.preference_probability(*pairs, cfg)[0]
    answers = annotators.annotate(pairs, cfg, 0)
    assert set(np.unique(answers)) == {0, 1}
    assert np.mean(answers == 0) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))
    np.testing.assert_array_equal(answers, annotators.annotate(pairs, cfg, 0))
    assert np.any(answers != annotators.annotate(pairs, cfg, 1))


def accuracy_of_gold(p, pairs):
    """The expected accuracy of a judge who knows only the gold."""
    return np.mean(0.5 + np.sign(pairs.gold_a - pairs.gold_b) * (p - 0.5))


def test_the_ceiling_is_what_a_judge_who_knows_the_probabilities_reaches():
    pairs, cfg = pairs_of(40_000), AnnotatorConfig(scale=1.0, noise=0.1, length_bias=0.2)
    p = annotators.preference_probability(*pairs, cfg)
    right = annotators.annotate(pairs, cfg, 0) == (p < 0.5)
    ceiling = annotators.accuracy_ceiling(p)
    assert right.mean() == pytest.approx(ceiling, abs=4 * right.std() / 200)
    by_gold = annotators.annotate(pairs, cfg, 0) == (pairs.gold_a < pairs.gold_b)
    expected = accuracy_of_gold(p, pairs)
    assert by_gold.mean() == pytest.approx(expected, abs=4 * by_gold.std() / 200)
    assert expected < ceiling - 0.05  # the bias is real, and gold does not know of it


def test_without_length_bias_the_gold_judge_reaches_the_ceiling():
    pairs, cfg = pairs_of(1000), AnnotatorConfig(scale=1.3, noise=0.15)
    p = annotators.preference_probability(*pairs, cfg)
    assert accuracy_of_gold(p, pairs) == pytest.approx(annotators.accuracy_ceiling(p))
    assert annotators.accuracy_ceiling(np.array([0.5, 0.5])) == 0.5
    assert annotators.accuracy_ceiling(np.array([0.9, 0.2])) == pytest.approx(0.85)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"AnnotatorConfig.noise = 1.5"):
        AnnotatorConfig(noise=1.5)
    with pytest.raises(ValueError, match=r"AnnotatorConfig.scale = -1"):
        AnnotatorConfig(scale=-1.0)
