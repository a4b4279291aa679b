import itertools
import math
import random
import string
from collections import Counter, defaultdict

import numpy as np
import pytest

from rlhf_jax.tasks import answer

PLAIN = "anna has 3 apples . she buys 4 . she gives tom 2 . how many has she ?"
ASIDE = "anna has 3 apples . tom buys 5 . she buys 4 . she gives tom 2 . how many has she ?"
ONE = "anna has 3 apples . she buys 4 . how many has anna ?"
RIGHT = "3 + 4 = 7 ; 7 - 2 = 5 #### 5"
EVERY = answer.prompts()


@pytest.fixture(scope="module")
def sample():
    return answer.generate(0, 6000, EVERY)


def told(prompt):
    """(the right number, the number of somebody who counts asides), by words alone."""
    sentences = prompt.split(" . ")
    first = sentences[0].split()[2]
    right = fooled = int(first)
    for words in (x.split() for x in sentences[1:-1]):
        mine = words[0] in ("she", "he")
        factor = {"doubles": 2, "triples": 3}.get(words[1])
        n = next((int(x) for x in words if x.isdigit()), 0)
        if factor:
            step = lambda x, k=factor: x * k
        elif words[1] in ("buys", "finds") or (words[1] == "gives" and not mine):
            step = lambda x, n=n: x + n
        else:
            step = lambda x, n=n: x - n
        fooled = step(fooled)
        if mine or words[1] == "gives":
            right = step(right)
    return right, fooled


def test_the_world_is_as_large_as_it_says(sample):
    assert len(EVERY) == len(set(EVERY)) == 6000
    assert max(len(prompt.split()) for prompt in EVERY) == 30
    assert max(len(response.split()) for _, response in sample) <= 25
    assert {len(answer.own(answer.read(prompt))) for prompt in EVERY} == {2, 3, 4}
    words = {word for pair in sample for text in pair for word in text.split()}
    assert len(words) < 80
    asides = [len(answer.own(x)) < len(x.steps) for x in map(answer.read, EVERY)]
    assert 0.4 < np.mean(asides) < 0.5


def test_the_answer_is_that_of_a_slow_reader_and_an_aside_always_misleads():
    for prompt in EVERY:
        right, fooled = told(prompt)
        assert answer.answer(prompt) == str(right) and 1 <= right <= 20
        problem = answer.read(prompt)
        assert answer.numbers(problem.start, problem.steps)[-1] == fooled
        assert (fooled != right) == (len(answer.own(problem)) < len(problem.steps))


def test_equal_seeds_give_equal_demonstrations_and_other_seeds_others():
    first = answer.generate(3, 200, EVERY[:50])
    assert first == answer.generate(3, 200, EVERY[:50])
    assert first != answer.generate(4, 200, EVERY[:50])
    assert {prompt for prompt, _ in first} <= set(EVERY[:50])


def test_the_rows_are_a_partition_with_the_answers():
    train, held_out = answer.TASK.prompts(0.05, 0)
    assert len(held_out) == 300
    assert sorted(row["prompt"] for row in train + held_out) == sorted(EVERY)
    assert all(row["answer"] == answer.answer(row["prompt"]) for row in held_out)
    assert (train, held_out) == answer.TASK.prompts(0.05, 0) != answer.TASK.prompts(0.05, 1)
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(
            ValueError, match=r"data\.held_out = .* of 6000 prompts leaves one side empty"
        ):
            answer.split_prompts(fraction, 0)


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (RIGHT, 2),
        ("#### 5", 1),  # no working
        ("3 + 4 = 7 #### 5", 1.5),
        ("3 + 4 = 7 ; 7 - 2 = 4 #### 4", -0.5),
        ("3 + 4 = 7 ; 7 - 2 = 5 #### 4", 0),
        ("3 + 4 = 8 ; 8 - 2 = 6 #### 5", 1),
        ("3 + 4 = 7 ; 7 - 2 = 5 ; 5 + 0 = 5 #### 5", 2 - 1 / 3),  # a step too many
        ("3 + 5 = 8 ; 8 + 4 = 12 ; 12 - 2 = 10 #### 10", -1),
        (RIGHT + " apples", -3),  # the form, the working, and another number
        (RIGHT + " or 4", -3),
        ("#### 4 or 5", -3),
        (RIGHT + " " + RIGHT, -3),
        ("3 + 4 = 7; 7 - 2 = 5 #### 5", -1),  # right, in another form
        ("####5", -1),
        ("#### \N{ARABIC-INDIC DIGIT FIVE}", -3),
        ("5", -3),
        ("", -3),
    ],
)
def test_gold_is_what_it_promises(response, gold):
    assert answer.gold(PLAIN, response) == pytest.approx(gold)


def test_a_prompt_of_another_world_is_refused():
    nothing = "anna has 3 apples . how many has she ?"
    aside = "anna has 3 apples . tom buys 5 . how many has she ?"
    other = "anna has 3 apples . she eats 2 . how many ?"
    for prompt in ("", "hello there", other, nothing, aside):
        with pytest.raises(ValueError, match="is no problem of this world: write one such as"):
            answer.gold(prompt, RIGHT)


def test_the_metrics_are_those_of_the_verifier():
    rows = [{"prompt": PLAIN, "answer": "5"}] * 5
    texts = [RIGHT, "#### 4", "so #### 5", "#### 5 #### 5", "5"]
    np.testing.assert_array_equal(answer.accuracy(rows, texts), [1, 0, 1, 0, 0])
    np.testing.assert_array_equal(answer.format_errors(rows, texts), [0, 0, 1, 1, 1])


def test_the_best_responses_are_right_everywhere():
    rows = [{"prompt": prompt, "answer": answer.answer(prompt)} for prompt in EVERY]
    texts = answer.best(rows)
    assert answer.best([{"prompt": ASIDE}]) == [RIGHT]
    assert answer.golds(EVERY, texts).min() == 2 == answer.RIGHT
    assert answer.accuracy(rows, texts).min() == 1 and not answer.format_errors(rows, texts).any()


def test_no_text_of_a_small_vocabulary_beats_the_best():
    """All texts of up to seven words, among them the best one, which has seven."""
    words, found = ("3", "4", "7", "+", "=", "####"), {}
    for length in range(8):
        for text in map(" ".join, itertools.product(words, repeat=length)):
            if length < 5 or text.count("####") == 1:  # the others have two faults and no answer
                found[text] = answer.gold(ONE, text)
    assert max(found.values()) == 2
    assert [x for x, gold in found.items() if gold == 2] == ["3 + 4 = 7 #### 7"]
    assert min(found.values()) >= -3


def test_degenerate_answers_lose(sample):
    honest = answer.golds(*zip(*sample, strict=True)).mean()
    some = EVERY[::20]
    of_all = lambda text: answer.golds(some, [text] * len(some)).mean()
    assert honest > 0.5
    for n in range(30):
        for text in (f"#### {n}", f"3 + 4 = 7 #### {n}", f"{n}"):
            assert of_all(text) < -0.7
    numbers = " ".join(map(str, range(21)))
    for text in (
        *("", "####", "#### ", ".", "#### 4 or 5", "#### nan", "#### inf", numbers),
        *(f"#### {numbers}", " ".join(f"#### {n}" for n in range(21)), "#### " * 20),
    ):
        assert of_all(text) <= -2, text
    assert answer.golds(some, some).max() == -3  # copies
    numbered = [f"{prompt} #### {answer.answer(prompt)}" for prompt in some]
    assert answer.golds(some, numbered).max() < 0  # and copies with the right number
    last = [f"#### {[x for x in prompt.split() if x.isdigit()][-1]}" for prompt in some]
    assert answer.golds(some, last).mean() < 0


def test_any_text_has_a_score_within_the_bounds(sample):
    rng = random.Random(0)
    letters = string.printable + "\u0663\u00bd\u00e9\x00"
    pieces = [*"0123456789;=+-*", "####", " ", "12", "3 + 4 = 7"]
    texts = ["".join(rng.choices(letters, k=rng.randint(0, 40))) for _ in range(2000)]
    texts += ["".join(rng.choices(pieces, k=rng.randint(0, 30))) for _ in range(4000)]
    texts += ["9" * 10**6, "#### " + "9" * 10**6, "3 + 4 = 7 ; " * 10**5 + "#### 5"]
    for (prompt, response), text in zip(itertools.cycle(sample[:50]), texts, strict=False):
        cut = rng.randrange(len(response))
        for said in (text, response[:cut] + text[:50] + response[cut:]):
            assert -3 <= answer.gold(prompt, said) <= 2
            answer.log_prob(prompt, said)


def test_a_hill_climber_finds_nothing_better_than_the_best():
    rng = random.Random(1)
    words = [*map(str, range(21)), "+", "-", "*", "=", ";", "####"]
    for start in (RIGHT, "#### 5", "3 + 4 = 8 ; 8 - 2 = 6 #### 6"):
        text = start.split()
        score = lambda text: answer.gold(PLAIN, " ".join(text))
        for _ in range(3000):
            place = rng.randrange(len(text) + 1)
            put, cut = [rng.choice(words)] * rng.randint(0, 1), rng.choice((0, 1, 1, 2, 6))
            text = max(text, text[:place] + put + text[place + cut :], key=score)
        assert score(text) <= 2


# --- the law of the workers


def everything(prompt):
    """Every response of a worker, spelled out with all slips."""
    problem = answer.read(prompt)
    for steps, _ in answer.readings(problem):
        for n in range(60):
            yield f"#### {n}"
        for slips in itertools.product((0, 1, -1), repeat=len(steps)):
            value, found = problem.start, []
            for step, slip in zip(steps, slips, strict=True):
                result = max(answer.apply(value, step) + slip, 0)
                found.append(f"{value} {step.sign} {step.n} = {result}")
                value = result
            yield answer.written(found, value)


ZERO = "tom has 3 pens . he loses 3 . anna finds 1 . he doubles them . how many has he ?"


@pytest.mark.parametrize("prompt", [PLAIN, ASIDE, ONE, ZERO, EVERY[0]])
def test_the_probabilities_of_all_responses_sum_to_one(prompt):
    total, right = 0.0, defaultdict(float)
    for response in set(everything(prompt)):
        p = math.exp(answer.log_prob(prompt, response))
        total += p
        right[int(answer.says(response))] += p
    assert total == pytest.approx(1, abs=1e-12)
    law = answer.answers(prompt)
    for number in {*law, *right}:
        assert law.get(number, 0.0) == pytest.approx(right[number], abs=1e-12)


@pytest.mark.parametrize("prompt", [ASIDE, ZERO])
def test_log_probabilities_are_the_frequencies_of_the_workers(prompt):
    n = 20_000
    drawn = Counter(response for _, response in answer.generate(5, n, [prompt]))
    for response, count in drawn.most_common(20):
        p = math.exp(answer.log_prob(prompt, response))
        assert count == pytest.approx(n * p, abs=5 * math.sqrt(n * p))


def test_most_workers_count_an_aside_and_two_in_five_do_not():
    whole = "3 + 5 = 8 ; 8 + 4 = 12 ; 12 - 2 = 10 #### 10"
    p = {text: math.exp(answer.log_prob(ASIDE, text)) for text in (RIGHT, whole)}
    assert p[whole] == pytest.approx(0.6 * 0.85 * 0.92**3)
    assert p[RIGHT] == pytest.approx(0.4 * 0.85 * 0.92**2)
    assert math.exp(answer.log_prob(PLAIN, RIGHT)) == pytest.approx(0.85 * 0.92**2)


@pytest.mark.parametrize(
    "response",
    [
        *("", "5", "#### 9", "#### 05", "3 + 4 = 7 #### 7", RIGHT + " .", RIGHT + " " + RIGHT),
        *("3 + 4 = 9 ; 9 - 2 = 7 #### 7", "3 + 4 = 7 ; 7 - 2 = 5 #### 6", RIGHT.replace("7", "07")),
        *("4 + 3 = 7 ; 7 - 2 = 5 #### 5", "3 + 4 = 8 ; 7 - 2 = 5 #### 5"),
    ],
)
def test_nobody_writes_another_response(response):
    assert answer.log_prob(PLAIN, response) == -math.inf


def test_all_that_workers_write_has_a_probability_and_the_right_form(sample):
    for prompt, response in sample[:3000]:
        assert math.isfinite(answer.log_prob(prompt, response))
    rows = [{"prompt": prompt, "answer": answer.answer(prompt)} for prompt, _ in sample]
    texts = [response for _, response in sample]
    assert not answer.format_errors(rows, texts).any()
    right, facts = answer.accuracy(rows, texts), answer.TASK.facts(sample)
    expected = facts["accuracy of the workers"]
    assert 0.5 < expected < 0.6
    assert right.mean() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(len(right)))
    assert facts["entropy of the workers, nats a response"] == pytest.approx(1.8, abs=0.1)
    golds = answer.golds([prompt for prompt, _ in sample], texts)
    assert golds.dtype == np.float32
    assert golds.std() == pytest.approx(1.3, abs=0.05)


def test_the_likeliest_response_to_an_aside_is_wrong():
    """So that greedy decoding and a majority of samples are wrong there, and a verifier has more to teach."""
    for prompt in EVERY[:300]:
        problem, law = answer.read(prompt), answer.answers(prompt)
        fooled = len(answer.own(problem)) < len(problem.steps)
        assert (max(law, key=lambda n: law[n]) != int(answer.answer(prompt))) == fooled
