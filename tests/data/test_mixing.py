"""Mixtures of sources against a loop, and the strings that name them."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from rlhf_jax.data import demonstrations, mixing, sources
from rlhf_jax.pipeline import inputs, texts


def in_turn(sizes, weights):
    """The source of each row, a row at a time: the first source takes one as soon as its count falls
    behind its share of the rows so far, and of those that it leaves so does the second, and so on."""
    parts = [round(100 * weight / min(weights)) for weight in weights]
    shares = [Fraction(part, sum(parts[i:])) for i, part in enumerate(parts)]
    rows = int(min(Fraction(n * sum(parts), part) for n, part in zip(sizes, parts, strict=True)))
    reached, taken, order = [0] * len(sizes), [0] * len(sizes), []
    for _ in range(rows):
        for i, share in enumerate(shares):
            reached[i] += 1
            if taken[i] < share * reached[i]:
                taken[i] += 1
                order.append(i)
                break
    return order


@pytest.mark.parametrize("seed", range(30))
def test_proportions_are_those_of_a_loop_and_no_row_comes_twice(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 5))
    sizes = rng.integers(20, 200, count).tolist()
    weights = (rng.integers(1, 9, count) / (1 if seed % 2 else 10)).tolist()
    rows = [[(i, j) for j in range(n)] for i, n in enumerate(sizes)]
    found = mixing.mix(rows, weights, seed)
    assert [i for i, _ in found] == in_turn(sizes, weights)
    assert len(set(found)) == len(found) and set(found) <= {x for part in rows for x in part}
    for end in range(1, len(found)):
        counts = Counter(i for i, _ in found[:end])
        for i, weight in enumerate(weights):
            assert abs(counts[i] - end * weight / sum(weights)) < max(1, count - 1) + 0.02 * end
    used = Counter(i for i, _ in found)
    assert any(sizes[i] - used[i] < count + 0.02 * sizes[i] for i in range(count))


def test_seven_of_ten_rows_are_the_firsts():
    found = mixing.mix([["a"] * 1000, ["b"] * 1000], [0.7, 0.3])
    assert abs(found.count("a") / len(found) - 0.7) < 1e-3 and found.count("a") == 1000


def test_rows_are_shuffled_by_the_seed_alone():
    rows = [list(range(50)), list(range(100, 300))]
    assert (
        mixing.mix(rows, [1.0, 1.0])
        == mixing.mix(rows, [1.0, 1.0])
        != mixing.mix(rows, [1.0, 1.0], 1)
    )
    for part in rows:
        found = [x for x in mixing.mix(rows, [1.0, 1.0]) if x in part]
        assert len(found) == 50 and found != sorted(found)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a.jsonl", []),
        ("a.jsonl,b.jsonl", []),
        ("7", []),
        ("tfds:gsm8k:train[:90%]", []),
        ("2024*.jsonl, ~/b:c.jsonl", []),
        ("0.7:a.jsonl,0.3:b.jsonl", [(0.7, "a.jsonl"), (0.3, "b.jsonl")]),
        (" 2 : *.jsonl , 1e-1:hf:x/y:test", [(2, "*.jsonl"), (0.1, "hf:x/y:test")]),
        ("3:tfds:gsm8k:train[:90%],1:a:b", [(3, "tfds:gsm8k:train[:90%]"), (1, "a:b")]),
    ],
)
def test_a_weight_is_a_number_before_a_colon(source, parts):
    assert mixing.parse(source) == parts


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "-0.0"])
def test_weights_that_are_not_positive_numbers_are_refused(weight):
    with pytest.raises(ValueError, match=rf"'{weight}:b' has a weight that is not positive: write"):
        mixing.parse(f"1:a,{weight}:b")


def test_a_source_without_a_weight_beside_others_is_refused():
    with pytest.raises(ValueError, match=r"'0.7:a,b': 'b' has no weight beside others: write"):
        mixing.parse("0.7:a,b")


def test_a_file_whose_name_has_a_colon_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources.write_jsonl("10:30.jsonl", [{"text": "t"}])
    assert mixing.parse("10:30.jsonl") == [] and len(sources.read("10:30.jsonl")) == 1


def test_a_corpus_is_mixed_of_files_and_knows_their_lines(tmp_path, capsys):
    for name, n in (("a", 40), ("b1", 30), ("b2", 30)):
        rows = [{"prompt": f"{name} {i}", "response": "yes"} for i in range(n)]
        sources.write_jsonl(tmp_path / f"{name}.jsonl", rows)
    source = f"4:{tmp_path}/a.jsonl,2:{tmp_path}/b*.jsonl"
    found = sources.read(source, ("prompt",))
    assert Counter(row["prompt"][0] for row in found) == {"a": 40, "b": 20}
    assert {row["prompt"][:2] for row in found} == {"a ", "b1", "b2"}
    said = f"mixture: 40 of 40 rows of {tmp_path}/a.jsonl, 20 of 60 rows of {tmp_path}/b*.jsonl\n"
    assert capsys.readouterr().out == said
    where = [row.where for row in found]
    assert f"{tmp_path}/a.jsonl:40" in where and where != sorted(where)
    assert sources.read(source) == found
    assert [x.prompt for x in demonstrations.read_demonstrations(source)] == [
        row["prompt"] for row in found
    ]
    cfg = type("Config", (), {"data": texts.DataConfig(corpus=source)})
    assert len(inputs.content(cfg)["data.corpus"]) == 3


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("0.7:a,0.3:a", "names a source twice"),
        ("1e300:a,1e-300:b", "differ by more than 1000"),
    ],
)
def test_mixtures_that_hardly_are_any_are_refused(source, said):
    with pytest.raises(ValueError, match=said):
        mixing.parse(source)


def test_a_source_too_small_for_its_weight_is_refused(tmp_path):
    for name, n in (("many", 300), ("one", 1)):
        sources.write_jsonl(tmp_path / name, [{"text": f"{name} {i}"} for i in range(n)])
    with pytest.raises(ValueError, match=r"no row of .*one fits its weight beside 300 rows"):
        sources.read(f"0.1:{tmp_path}/many,0.9:{tmp_path}/one")
