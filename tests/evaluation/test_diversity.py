import pytest

from rlhf_jax.evaluation import diversity


def test_distinct_n_counts_the_pairs_of_words_of_all_texts():
    texts = ["a b a b", "a b", "c", ""]  # pairs: ab ba ab, ab
    assert diversity.distinct(texts, 2) == pytest.approx(2 / 4)
    assert diversity.distinct(texts, 1) == pytest.approx(3 / 7)
    assert diversity.distinct(["c"], 2) == 0.0 == diversity.distinct([], 1)
    assert diversity.different(["a", "a", "b", "c"]) == 0.75 and diversity.different([]) == 0.0
