"""Comparisons with references beside the libraries' own numbers; pass@k and maj@k by enumeration."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from rlhf_jax.evaluation import intervals, references

SAID = [
    "The cat sat on the mat.",
    "There is a dog in the garden, and it barks.",
    "He went home yesterday",
    "",
    "Nobody knows what the weather will be.",
    "the the the the",
]
WANTED = [
    ["The cat sat on a mat.", "A cat was sitting on the mat."],
    ["There is a dog in the garden and it is barking."],
    ["He went home yesterday", "Yesterday he returned home", "He left"],
    ["Something should be said."],
    ["Nobody knows how the weather is going to be tomorrow."],
    ["the end"],
]
PROMPTS = ["a", "b", "c", "d", "e", "f"]
STREAMS = [[w[i] if i < len(w) else None for w in WANTED] for i in range(3)]


def test_the_numbers_are_those_of_sacrebleu_and_rouge_score():
    found = references.compare(list(references.OVERLAPS), SAID, WANTED, PROMPTS)
    assert list(found) == ["BLEU", "chrF", "ROUGE-1", "ROUGE-2", "ROUGE-L", "exact match"]
    assert found["BLEU"]["mean"] == pytest.approx(sacrebleu.corpus_bleu(SAID, STREAMS).score)
    assert found["chrF"]["mean"] == pytest.approx(sacrebleu.corpus_chrf(SAID, STREAMS).score)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name in ("rouge1", "rouge2", "rougeL"):
        best = [
            max(scorer.score(one, said)[name].fmeasure for one in wanted)
            for said, wanted in zip(SAID, WANTED, strict=True)
        ]
        shown = f"ROUGE-{name[-1]}"
        assert found[shown]["mean"] == pytest.approx(np.mean(best)), name
    assert found["exact match"]["mean"] == pytest.approx(1 / 6)
    assert all(x["low"] <= x["mean"] <= x["high"] for x in found.values())


@pytest.mark.parametrize("name", ["BLEU", "chrF"])
def test_the_interval_of_a_corpus_is_that_of_whole_corpora_drawn_by_prompt(name):
    """The slow twin scores each drawn corpus anew; two draws of each prompt are drawn together."""
    said, wanted = SAID + [x[::-1] for x in SAID], WANTED * 2
    found = references.compare([name], said, wanted, PROMPTS * 2)[name]
    times = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=references.RESAMPLES)[
        :150
    ]
    metric = sacrebleu.BLEU(force=True) if name == "BLEU" else sacrebleu.CHRF()
    scores = []
    for many in times:
        rows = [i for i in range(12) for _ in range(many[i % 6])]
        streams = [[wanted[i][j] if j < len(wanted[i]) else None for i in rows] for j in range(3)]
        scores.append(metric.corpus_score([said[i] for i in rows], streams).score)
    slow = intervals.percentile_interval(found["mean"], np.array(scores), 6)
    width = slow.high - slow.low
    assert abs(found["low"] - slow.low) < 0.1 * width > 0
    assert abs(found["high"] - slow.high) < 0.1 * width
    alone = references.compare([name], said, wanted, None)[name]
    assert (
        alone["mean"] == found["mean"]
        and alone["high"] - alone["low"] != found["high"] - found["low"]
    )


def test_one_text_is_a_list_of_one():
    names, one = list(references.OVERLAPS), [x[0] for x in WANTED]
    several = [[x] for x in one]
    assert references.compare(names, SAID, one, PROMPTS) == references.compare(
        names, SAID, several, PROMPTS
    )


def test_a_perfect_answer_and_hostile_ones():
    names, wanted = list(references.OVERLAPS), [x[0] for x in WANTED[:3]] * 2
    found = references.compare(names, wanted, wanted, PROMPTS)
    best = [100, 100, 1, 1, 1, 1]
    assert [x["mean"] for x in found.values()] == pytest.approx(best)
    for hostile in ("", "?" * 2**15, "nan", "\N{ARABIC-INDIC DIGIT FOUR}", "\ud800"):
        found = references.compare(names, [hostile] * 6, wanted, PROMPTS)
        assert all(
            0 <= x["mean"] < 0.1 * most for x, most in zip(found.values(), best, strict=True)
        )


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(
        ValueError, match="'bleu' is no comparison: choose among BLEU, chrF, ROUGE-1"
    ):
        references.compare(["bleu"], SAID, WANTED, PROMPTS)
    with pytest.raises(ValueError, match="2 responses have 1 answers: give one for each"):
        references.compare(["BLEU"], ["a", "b"], ["a"], None)
    with pytest.raises(ValueError, match="0 responses have 0 answers"):
        references.compare(["BLEU"], [], [], None)
    with pytest.raises(ValueError, match=r"answers\[1\] is \[\]: give a text, or a list of texts"):
        references.compare(["BLEU"], ["a", "b"], ["a", []], None)


# verified draws

KINDS = [
    "4454",
    "4455",
    "45",
    "5555",
    "4444444",
    "456",
    "-4-5-5",
    "---4",
    "----",
    "44556644",
    "4-5566677",
]
"""Draws of a prompt: 4 is right, and - has no answer."""


def draws(kind):
    said = [None if x == "-" else int(x) for x in kind]
    return np.array([x == 4 for x in said]), said


def vote(said):
    """The chance that the vote of these draws is 4."""
    votes = Counter(x for x in said if x is not None)
    best = [x for x, n in votes.items() if n == max(votes.values())]
    return Fraction(4 in best, max(len(best), 1))


@pytest.mark.parametrize("kind", KINDS)
def test_both_are_the_mean_over_all_subsets(kind):
    correct, said = draws(kind)
    for k in range(1, len(kind) + 1):
        subsets = list(itertools.combinations(range(len(kind)), k))
        some = np.mean([correct[list(subset)].any() for subset in subsets])
        assert references.pass_at_k(correct, ["p"] * len(kind), k) == pytest.approx([some])
        most = sum(vote([said[i] for i in subset]) for subset in subsets) / len(subsets)
        found = references.maj_at_k(correct, said, ["p"] * len(kind), k)
        assert found == pytest.approx([float(most)]), k


def test_several_answers_may_be_right():
    """Two subsets of three are a tie of three answers, two of them right; two hold a majority for 2."""
    said = ["1/2", "0.5", "2", "2"]
    correct = np.array([True, True, False, False])
    found = references.maj_at_k(correct, said, ["p"] * 4, 3)
    assert found == pytest.approx([2 / 4 * 2 / 3])


def test_draws_are_grouped_by_prompt_in_the_order_of_the_first():
    both = [draws("445"), draws("5--4")]
    correct, said = np.concatenate([x[0] for x in both]), both[0][1] + both[1][1]
    prompts = ["z"] * 3 + ["a"] * 4
    mixed = [3, 0, 4, 1, 5, 2, 6]
    for k in (1, 3):
        one = references.pass_at_k(correct, prompts, k)
        assert one[0] == references.pass_at_k(correct[:3], prompts[:3], k)[0]
        again = references.pass_at_k(correct[mixed], [prompts[i] for i in mixed], k)
        np.testing.assert_array_equal(again, one[::-1])
        votes = references.maj_at_k(correct, said, prompts, k)
        shuffled = [said[i] for i in mixed]
        again = references.maj_at_k(correct[mixed], shuffled, [prompts[i] for i in mixed], k)
        np.testing.assert_array_equal(again, votes[::-1])


def test_too_few_draws_are_refused():
    correct, said = draws("445")
    for k in (0, 2):
        with pytest.raises(ValueError, match=f"k = {k}, and the fewest draws of a prompt are 1"):
            references.pass_at_k(correct, ["a", "a", "b"], k)
        with pytest.raises(ValueError, match="choose a k from 1 to that number"):
            references.maj_at_k(correct, said, None, k)


def test_a_hundred_draws_of_many_answers_are_counted_exactly():
    """Against the closed form for two draws: the right one twice, or once beside another or none."""
    said = [*[0] * 30, *range(1, 51), *[None] * 20]
    correct = np.array([x == 0 for x in said])
    pairs = 100 * 99 / 2
    want = (30 * 29 / 2 + 30 * 20 + 30 * 50 / 2) / pairs
    assert references.maj_at_k(correct, said, ["p"] * 100, 2) == pytest.approx([want])
    assert 0 < references.maj_at_k(correct, said, ["p"] * 100, 64)[0] <= 1
