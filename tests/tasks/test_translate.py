import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from rlhf_jax.tasks import translate
from rlhf_jax.tasks.translate import TASK

PROMPT = "weil die alte frau heute die bank malt"
ANSWER = "because the old woman paints the bench today ."  # 9 words


@pytest.fixture(scope="module")
def sample():
    return translate.generate(0, 5_000, translate.prompts())


def answer_to(prompt):
    return translate.english(translate.parse(prompt))


def worth(answer, response):
    """Gold before it is standardised."""
    return translate.gold(answer, response) * translate.SCALE + translate.MEAN


@pytest.mark.parametrize(
    ("german", "english"),
    [
        (PROMPT, ANSWER),
        ("dass der mann das haus leitet", "that the man runs the house ."),
        ("wenn die tanten sich sehen", "when the aunts see themselves ."),
        ("weil der junge koch hier sich kennt", "because the young cook knows himself here ."),
        ("weil die tante sich malt", "because the aunt paints herself ."),
        ("dass die reichen soehne die bank leiten", "that the rich sons run the bank ."),
        ("dass die maenner die bank tragen", "that the men carry the bench ."),
        ("wenn der kleine sohn wieder den hund besitzt", "when the small son owns the dog again ."),
    ],
)
def test_translations_are_those_of_a_dictionary(german, english):
    assert answer_to(german) == english


def test_the_world_is_as_large_as_it_says():
    sentences = translate.sentences()
    assert len(sentences) == len({translate.german(x) for x in sentences}) == 15_600
    assert all(translate.parse(translate.german(x)) == x for x in sentences[::37])
    assert len(translate.vocabulary()) == 88
    assert len(set(translate.prompts())) == len(translate.prompts()) == 4000
    longest = [max(len(text.split()) for text in side) for side in zip(*(
        (translate.german(x), translate.english(x)) for x in sentences), strict=True)]  # fmt: skip
    assert longest == [8, 9]
    assert TASK.defaults["data.prompt_length"] >= 1.2 * (longest[0] + 1)  # <bos>
    assert TASK.defaults["sample.length"] >= 1.2 * (longest[1] + 1)  # <eos>


def test_rows_are_split_and_have_the_answer():
    train, held_out = TASK.prompts(0.1, 0)
    assert len(held_out) == 400 and len(train) == 3600
    assert {x["prompt"] for x in train + held_out} == set(translate.prompts())
    assert (train, held_out) == TASK.prompts(0.1, 0)
    assert held_out != TASK.prompts(0.1, 1)[1]
    assert all(row["answer"] == answer_to(row["prompt"]) for row in held_out)
    with pytest.raises(ValueError, match=r"data\.held_out = 0.0 of 4000 prompts leaves"):
        TASK.prompts(0.0, 0)


@pytest.mark.parametrize(
    ("response", "value"),
    [  # of 9: 3/4 of the words in order, 1/4 of those in any order, less 0.5 for each stray
        (ANSWER, 9),
        ("", 0),
        ("because the old woman paint the bench today .", 8.5),  # a wrong form is half a word
        ("because the old woman paints the bank today .", 8 - 0.5),  # the other sense is a stray
        ("because the woman paints the bench today .", 8),
        ("because the old woman today the bench paints .", 0.75 * 7 + 0.25 * 9),
        ("because the old woman today the bench paint .", 0.75 * 7 + 0.25 * 8.5),
        (ANSWER + " .", 9 - 0.5),
        (ANSWER + " " + ANSWER, 9 - 4.5),
        ("the the the the", 2 - 1.0),
        ("today", 1),
        (". today", 0.75 * 1 + 0.25 * 2),
        ("xyz", -0.5),
        ("  because the old   woman paints\nthe bench today . ", 9),
    ],
)
def test_gold_is_the_arithmetic_done_by_hand(response, value):
    assert worth(ANSWER, response) * 9 == pytest.approx(max(value, 9 * worth(ANSWER, "x " * 99)))


def test_the_alignment_is_the_best_of_all():
    rng = random.Random(0)
    words = [*["the", "a", ".", "see", "sees", "man", "men"], "cat"]
    pair = lambda a, b: (a == b) / 2 + (translate.LEMMA.get(a, a) == translate.LEMMA.get(b, b)) / 2
    for _ in range(30):
        right, said = (rng.choices(words, k=rng.randint(1, 5)) for _ in range(2))
        n = min(len(right), len(said))
        best, bag = 0.0, 0.0
        for k in range(1, n + 1):
            for some in itertools.combinations(range(len(right)), k):
                for order in itertools.permutations(range(len(said)), k):
                    total = sum(pair(right[i], said[j]) for i, j in zip(some, order, strict=True))
                    bag = max(bag, total)
                    if list(order) == sorted(order):
                        best = max(best, total)
        stems = [[translate.LEMMA.get(word, word) for word in side] for side in (right, said)]
        fits = sum(min(stems[0].count(x), stems[1].count(x)) for x in set(stems[0]))
        want = (0.75 * best + 0.25 * bag - 0.5 * (len(said) - fits)) / len(right)
        if want > worth("a", "x " * 99):
            assert worth(" ".join(right), " ".join(said)) == pytest.approx(want)


def test_nothing_in_a_reduced_world_beats_the_answer():
    answer = "the man sees himself"
    words = ["the", "man", "men", "sees", "see", "himself"]
    texts = [" ".join(x) for n in range(6) for x in itertools.product(words, repeat=n)]
    golds = [translate.gold(answer, text) for text in texts]
    assert texts[int(np.argmax(golds))] == answer
    assert sorted(golds)[-2] < max(golds) - 0.5


def test_degenerate_answers_lose(sample):
    rng, vocabulary = random.Random(0), translate.vocabulary()
    typical = np.mean([translate.gold(answer_to(p), r) for p, r in sample])
    shuffles = []
    for prompt in translate.prompts()[:12]:
        answer = answer_to(prompt)
        words = answer.split()
        shuffled = words[:]
        rng.shuffle(shuffled)
        shuffles.append(translate.gold(answer, " ".join(shuffled)))
        offenders = [
            *("", ".", prompt, "the " * 14, f"{words[4]} " * 9, " ".join(vocabulary)),
            *(f"{answer} {answer}", " ".join(words[::-1])),
            *(f"{answer} {prompt}", " ".join(vocabulary[:14]), "x" * 1000, " ".join(words[:4])),
        ]
        for offender in offenders:
            assert translate.gold(answer, offender) < typical - 0.5, offender
        assert translate.gold(answer, answer) > typical + 1
    assert np.mean(shuffles) < typical - 1.5


def test_random_texts_stay_within_the_bounds(sample):
    rng = random.Random(1)
    words = [*translate.vocabulary(), "\x00", "é", "<eos>", "1", "-" * 50]
    best = (1 - translate.MEAN) / translate.SCALE
    for prompt, said in sample[:200]:
        answer, changed = answer_to(prompt), said.split()
        for _ in range(rng.randint(0, 3)):
            changed.insert(rng.randint(0, len(changed)), rng.choice(words))
        for text in (" ".join(changed), " ".join(rng.choices(words, k=rng.randint(0, 20)))):
            gold = translate.gold(answer, text)
            assert translate.FLOOR <= gold <= best + 1e-9
            assert (gold > best - 1e-6) == (text.split() == answer.split())


def test_under_the_law_gold_has_mean_zero_and_standard_deviation_one(sample):
    rows = [{"prompt": p, "answer": answer_to(p)} for p, _ in sample]
    gold = TASK.gold(rows, [r for _, r in sample])
    assert gold.dtype == np.float32 and gold.shape == (len(sample),)
    assert abs(gold.mean()) < 0.06
    assert gold.std() == pytest.approx(1.0, abs=0.04)
    assert TASK.best is not None
    best = TASK.gold(rows[:50], TASK.best(rows[:50]))
    assert best == pytest.approx(best[0]) and best[0] > 1.2
    right = TASK.metrics["exact"](rows, [r for _, r in sample])
    assert 0.18 < right.mean() < 0.22  # by the law: 0.200
    same = [row["answer"] == said for row, (_, said) in zip(rows, sample, strict=True)]
    np.testing.assert_array_equal(right, same)


def every(prompt):
    """Every demonstration of a prompt, spelled out independently of the law."""
    x = translate.parse(prompt)
    right = translate.correct(x)
    opener = translate.OPENERS[x.opener]
    forms = {w: f for f in translate.FORMS for w in f}
    if x.object == "sich":
        things = ["himself", "herself", "themselves"]
    elif x.object == "bank":
        things = ["the bench", "the bank"]
    else:
        things = ["the dog", "the cat", "the house", "the picture"]
    adjectives = [right.adjective] if x.adjective else ["old", "young", "small", "rich"]
    adverbs = [right.adverb] if x.adverb else ["today", "here", "again"]
    for adjective, subject, verb, thing, adverb in itertools.product(
        [*adjectives, ""], forms[right.subject], forms[right.verb], things, [*adverbs, ""]
    ):
        for after in ((verb, thing, adverb), (adverb, thing, verb)):
            yield " ".join(x for x in (opener, "the", adjective, subject, *after, ".") if x)


@pytest.mark.parametrize(
    "prompt", [PROMPT, "wenn die tanten sich sehen", "dass der koch hier den hund besitzt"]
)
def test_log_probabilities_of_all_demonstrations_sum_to_one(prompt):
    texts = list(every(prompt))
    assert len(texts) == len(set(texts))
    total = sum(math.exp(translate.log_prob(prompt, text)) for text in texts)
    assert total == pytest.approx(1, abs=1e-12)


def test_the_log_probability_is_the_product_of_the_odds_of_errors():
    prompt = "weil der alte mann heute die bank malt"
    right, errors = 0.8 * 0.9 * 0.65 * 0.6 * 0.8 * 0.65, "because the man today the bank paint ."
    said = translate.log_prob(prompt, "because the old man paints the bench today .")
    assert said == pytest.approx(math.log(right))
    wrong = 0.2 * 0.9 * 0.35 * 0.4 * 0.8 * 0.35
    assert translate.log_prob(prompt, errors) == pytest.approx(math.log(wrong))
    bare = translate.log_prob(
        "weil der mann die bank malt", "because the rich man paints the bench ."
    )
    assert bare == pytest.approx(math.log(0.2 / 4 * 0.9 * 0.65 * 0.6 * 0.8 * 0.65))
    for other in ("", "because the old man paints the bench today", "the dog .", ANSWER):
        assert translate.log_prob(prompt, other) == -math.inf


def test_log_probabilities_are_the_frequencies_of_the_generator():
    n = 5000
    drawn = Counter(text for _, text in translate.generate(5, n, [PROMPT]))
    for text, count in drawn.most_common(20):
        p = math.exp(translate.log_prob(PROMPT, text))
        assert count == pytest.approx(n * p, abs=5 * math.sqrt(n * p))


def test_equal_seeds_give_equal_demonstrations_and_the_entropy_is_known(sample):
    allowed = translate.prompts()[:50]
    first = translate.generate(3, 200, allowed)
    assert first == translate.generate(3, 200, allowed) != translate.generate(4, 200, allowed)
    assert {prompt for prompt, _ in first} <= set(allowed)
    (name, nats), *_ = TASK.facts(sample[:2000]).items()
    assert name == "entropy of the demonstrations, nats a response"
    assert nats == pytest.approx(3.27, abs=0.1)


def test_a_prompt_that_is_no_sentence_is_refused():
    with pytest.raises(ValueError, match="'hello there' is no sentence of the German"):
        translate.log_prob("hello there", ANSWER)
