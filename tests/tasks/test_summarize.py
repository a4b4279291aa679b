import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from rlhf_jax.tasks import summarize
from rlhf_jax.tasks.summarize import TASK

PROMPT = (  # weights 3, 0.2, 5, 4, 0.5: the best three are worth 12
    "the port was shut . some gulls watched . people saw a flood . two people were hurt . "
    "the skies were grey ."
)
BEST = "a flood . port closed . two hurt ."


@pytest.fixture(scope="module")
def sample():
    return summarize.generate(0, 5_000, summarize.reports())


def worth(response, prompt=PROMPT):
    """Gold before it is standardised."""
    return summarize.gold(prompt, response) * summarize.SCALE + summarize.MEAN


def test_the_world_is_as_large_as_it_says(sample):
    words = {word for pair in sample for text in pair for word in text.split()}
    assert words == set(summarize.vocabulary())
    assert len(words) == 69
    assert len(set(summarize.reports())) == 4000
    assert all(len(summarize.facts_of(report)) == 5 for report in summarize.reports())
    values = [value for kind in summarize.KINDS for value in kind.values]
    fixed = "".join(x for kind in summarize.KINDS for x in (kind.phrase, *kind.sentences)).split()
    assert len(values) == len(set(values)) and not set(values) & set(fixed)
    longest = [max(len(text.split()) for text in side) for side in zip(*sample, strict=True)]
    assert longest[0] <= 26 and longest[1] <= 22  # five facts, one invented, and padding: 21 or 22
    assert TASK.defaults["data.prompt_length"] >= 1.2 * (longest[0] + 1)  # <bos>
    assert TASK.defaults["sample.length"] > 22 + 1  # <eos>


def test_rows_are_split_and_have_the_answer():
    train, held_out = TASK.prompts(0.1, 0)
    assert len(held_out) == 400 and len(train) == 3600
    assert {x["prompt"] for x in train + held_out} == set(summarize.reports())
    assert (train, held_out) == TASK.prompts(0.1, 0)
    assert held_out != TASK.prompts(0.1, 1)[1]
    assert all(row["answer"] == summarize.best(row["prompt"]) for row in held_out)
    with pytest.raises(ValueError, match=r"data\.held_out = 1.0 of 4000 prompts leaves"):
        TASK.prompts(1.0, 0)


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (BEST, 1 - 0.09),
        ("two hurt . a flood . port closed .", 1 - 0.09),  # in any order
        ("a flood .", 5 / 12 - 0.03),
        ("a flood . grey skies .", 5.5 / 12 - 0.06),
        ("a flood . more soon .", 5 / 12 - 0.06),  # padding costs its words
        (BEST + " grey skies .", 12.5 / 12 - 0.12 - 0.66),  # three words beyond the line
        ("a fire .", -0.03 - 1.0),  # another value, and so no fact at all
        ("before dawn .", -0.03 - 1.0),  # nobody said so
        ("a flood . a flood .", 5 / 12 - 0.06 - 0.5),
        ("a flood two hurt .", -0.05 - 1.0),  # no phrase
        ("a flood . two hurt", 5 / 12 - 0.05 - 0.5),  # no end
        ("people saw a flood .", -0.05 - 1.0),
        ("flood .", -0.02 - 1.0),
        ("a flood . . two hurt .", 9 / 12 - 0.07 - 0.5),
        ("", -0.5),
        (".", -0.01 - 1.0),
        ("more soon .", -0.03 - 0.5),
        ("  a   flood\n. ", 5 / 12 - 0.03),
        ("a flood.two hurt.", 9 / 12 - 0.06),  # each "." is a word
        (BEST.replace(" . ", ".") + "grey skies.", 12.5 / 12 - 0.12 - 0.66),
    ],
)
def test_gold_is_the_arithmetic_done_by_hand(response, value):
    assert worth(response) == pytest.approx(value)


def test_under_the_law_gold_has_mean_zero_and_standard_deviation_one(sample):
    rows = [{"prompt": prompt} for prompt, _ in sample]
    gold = TASK.gold(rows, [response for _, response in sample])
    assert gold.dtype == np.float32 and gold.shape == (len(sample),)
    assert abs(gold.mean()) < 0.06
    assert gold.std() == pytest.approx(1.0, abs=0.04)
    assert TASK.best is not None
    best = TASK.gold(rows, TASK.best(rows))
    assert best.min() == pytest.approx((1 - 0.09 - summarize.MEAN) / summarize.SCALE)
    assert best.min() > 1.3 and np.all(gold <= best + 1e-6)


def test_nothing_in_a_reduced_world_beats_the_best():
    """All texts of up to four statements, some of them words that are no phrase."""
    for report in summarize.reports()[:3]:
        facts = [summarize.statement(fact)[:-2] for fact in summarize.facts_of(report)]
        statements = [*facts, "so it was", "a riot", "before night", "", "x"]
        texts = [
            " ".join([*(f"{x} ." for x in some), *rest])
            for n in range(5)
            for some in itertools.product(statements, repeat=n)
            for rest in ((), ("a",))
            if n < 4 or not rest
        ]
        highest = max(summarize.gold(report, text) for text in texts)
        assert highest == pytest.approx(summarize.gold(report, summarize.best(report)))


def test_no_choice_of_facts_beats_the_best():
    """In every report of eight kinds, by all subsets of its five facts."""
    for kinds in itertools.combinations(summarize.KINDS, 5):
        report = " ".join(f"{x.sentences[0].format(x.values[0])} ." for x in kinds)
        phrases = [f"{x.phrase.format(x.values[0])} ." for x in kinds]
        choices = (some for n in range(6) for some in itertools.combinations(phrases, n))
        best = max((" ".join(some) for some in choices), key=lambda x: summarize.gold(report, x))
        assert best == summarize.best(report)


def test_degenerate_summaries_lose(sample):
    typical = np.mean([summarize.gold(*pair) for pair in sample])
    rng, words = random.Random(0), summarize.vocabulary()
    scores = {}
    for prompt in summarize.reports()[:60]:
        best = summarize.best(prompt)
        facts = [summarize.statement(fact) for fact in summarize.facts_of(prompt)]
        shuffled = best.split()
        while " ".join(shuffled) == best or shuffled[2::3] == ["."] * 3:
            rng.shuffle(shuffled)
        offenders = {
            "empty": "",
            "end": ".",
            "prompt": prompt,
            "first sentence": prompt.partition(" . ")[0] + " .",
            "word": f"{best.split()[0]} " * 12 + ".",
            "all facts": " ".join(facts),
            "everything": " ".join(f"{phrase} ." for phrase in summarize.SAID),
            "longest": " ".join([*facts, *(f"{x} ." for x in summarize.PADDING)]),
            "shuffled": " ".join(shuffled),
            "without end": best[:-2],
            "twice": f"{best} {best}",
            "one fact thrice": " ".join([best[: best.index(".") + 1]] * 3),
            "of another": summarize.best(rng.choice(summarize.reports())),
            "padding": "more soon . stay tuned . so it was .",
            "words": " ".join(words),
        }
        for name, offender in offenders.items():
            gold = summarize.gold(prompt, offender)
            if best != offender:
                assert gold < summarize.gold(prompt, best) - 0.2, (name, prompt)
            scores.setdefault(name, []).append(gold)
    for name, golds in scores.items():
        assert np.mean(golds) < typical - 0.1 or name == "without end", name
    assert np.mean(scores["without end"]) < typical + 1
    assert summarize.gold(PROMPT, "a flood . " * 100_000) == summarize.FLOOR


def test_random_texts_stay_within_the_bounds(sample):
    rng, best = random.Random(1), (0.91 - summarize.MEAN) / summarize.SCALE
    words = [*summarize.vocabulary(), *".....", "\x00", "é", "<eos>", "..", "a.", "-" * 50]
    phrases = [f"{x} ." for x in (*summarize.SAID, *summarize.PADDING)]
    for prompt, said in sample[:500]:
        changed = said.split()
        for _ in range(rng.randint(0, 3)):
            changed.insert(rng.randint(0, len(changed)), rng.choice(words))
        noise = " ".join(rng.choices(words, k=rng.randint(0, 25)))
        for text in (" ".join(changed), noise, " ".join(rng.choices(phrases, k=6))):
            assert summarize.FLOOR <= summarize.gold(prompt, text) <= best + 1e-9


def every(prompt):
    """Every demonstration of a report, spelled out independently of the law."""
    present = [kind for kind, _ in summarize.facts_of(prompt)]
    options = [["", *(kind.phrase.format(x) for x in kind.values)] for kind in present]
    absent = [x for x in summarize.KINDS if x not in present]
    options.append(["", *(kind.phrase.format(x) for kind in absent for x in kind.values)])
    options.append(["", *summarize.PADDING])
    for said in itertools.product(*options):
        if any(said):
            yield " ".join(f"{x} ." for x in said if x)


def test_log_probabilities_of_all_demonstrations_sum_to_one(monkeypatch):
    """In a world of four kinds, of which a report has two, with two values each."""
    few = tuple(kind._replace(values=kind.values[:2]) for kind in summarize.KINDS[:4])
    of = {value: kind for kind in few for value in kind.values}
    said = {kind.phrase.format(value): (kind, value) for value, kind in of.items()}
    monkeypatch.setattr(summarize, "KINDS", few)
    monkeypatch.setattr(summarize, "KIND_OF", of)
    monkeypatch.setattr(summarize, "SAID", said)
    prompt = "it was before dawn . nurses saw two people ."
    texts = list(every(prompt))
    assert len(texts) == len(set(texts)) == 3 * 3 * 5 * 4 - 1
    total = sum(math.exp(summarize.log_prob(prompt, text)) for text in texts)
    assert total == pytest.approx(1, abs=1e-12)
    assert summarize.log_prob(prompt, "") == -math.inf


def test_log_probabilities_are_the_frequencies_of_the_generator():
    n = 5000
    drawn = Counter(text for _, text in summarize.generate(5, n, [PROMPT]))
    for text, count in drawn.most_common(20):
        p = math.exp(summarize.log_prob(PROMPT, text))
        assert count == pytest.approx(n * p, abs=5 * math.sqrt(n * p))


def test_writers_follow_the_weights_only_in_part(sample):
    """The share of reports that a kind is in whose summary has it right, for each kind."""
    shares = {}
    for prompt, response in sample:
        for kind, value in summarize.facts_of(prompt):
            said = f"{kind.phrase.format(value)} ." in response
            shares.setdefault(kind.weight, []).append(said)
    empty = 1.08  # some drafts are empty, and are written again
    for kind in summarize.KINDS:
        assert kind.odds * 0.9 - 0.04 < np.mean(shares[kind.weight]) < kind.odds * 0.9 * empty
    rows = [{"prompt": prompt} for prompt, _ in sample]
    true = TASK.metrics["faithful"](rows, [response for _, response in sample])
    assert 0.55 < true.mean() < 0.7  # about 0.9 to the power of 2.7 facts, less what is invented
    words = TASK.metrics["words"](rows, [response for _, response in sample])
    assert words.mean() == pytest.approx(9.2, abs=0.2)


def test_faithful_are_summaries_whose_facts_are_all_reported():
    texts = [BEST, "a flood . a fire .", "a flood . more soon .", "", "so it was .", "a flood", "x"]
    found = summarize.faithful([{"prompt": PROMPT}] * len(texts), texts)
    assert found.tolist() == [1, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "response",
    ["", "a flood", "two hurt . a flood .", "a flood . a fire .", "more soon . a flood .", "x ."],
)
def test_outside_the_law_the_log_probability_is_minus_infinity(response):
    assert summarize.log_prob(PROMPT, response) == -math.inf


def test_equal_seeds_give_equal_demonstrations_and_the_entropy_is_known(sample):
    allowed = summarize.reports()[:50]
    first = summarize.generate(3, 200, allowed)
    assert first == summarize.generate(3, 200, allowed) != summarize.generate(4, 200, allowed)
    assert {prompt for prompt, _ in first} <= set(allowed)
    (name, nats), *_ = TASK.facts(sample[:2000]).items()
    assert name == "entropy of the demonstrations, nats a response"
    assert nats == pytest.approx(6.24, abs=0.2)


@pytest.mark.parametrize("prompt", ["hello there", "", f"{PROMPT} a fire began ."])
def test_a_prompt_without_facts_or_with_two_of_a_kind_is_refused(prompt):
    with pytest.raises(ValueError, match="must report facts of different kinds"):
        summarize.gold(prompt, BEST)
