"""What a policy must beat: baselines that need no model, on files of prompts with answers.

python examples/trivial_baselines.py first_sentence --prompts validation.jsonl
python examples/trivial_baselines.py dictionary --corpus train.jsonl.gz --prompts validation.jsonl.gz
python examples/trivial_baselines.py most_frequent --corpus train.jsonl --prompts test.jsonl

A summary is the prompt's first sentence. A translation is word for word, by the dictionary in which a word
means the word with which it shares most sentences (Dice, 1945). An answer is the most frequent one of the
corpus. Sources are those of `--data.prompts`, and fields are called prompt and answer unless named.
"""

import re
from collections import Counter, defaultdict
from typing import Literal

import numpy as np
import tyro

from rlhf_jax.data import sources
from rlhf_jax.evaluation import references
from rlhf_jax.evaluation.intervals import bootstrap_interval
from rlhf_jax.rewards import answers, verifiers

Kind = Literal["first_sentence", "dictionary", "most_frequent"]


def dictionary(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """The word of the other language with the highest 2 n(x, y) / (n(x) + n(y)), for each word x."""
    both: dict[str, Counter] = defaultdict(Counter)
    xs, ys = Counter(), Counter()
    for x, y in pairs:
        left, right = set(words(x)), set(words(y))
        xs.update(left)
        ys.update(right)
        for word in left:
            both[word].update(right)
    dice = lambda x, y: 2 * both[x][y] / (xs[x] + ys[y])
    return {x: max(sorted(both[x]), key=lambda y: dice(x, y)) for x in both}


def words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return re.findall(r"\w+(?:'\w+)?|[^\w\s]", text.lower())


def sentence(said: list[str]) -> str:
    """The words as a sentence: with a capital, and no space before a punctuation mark."""
    text = re.sub(r" (?=[^\w\s])", "", " ".join(said))
    return text[:1].upper() + text[1:]


def main(
    kind: tyro.conf.Positional[Kind],
    prompts: str,
    corpus: str = "",
    prompt: str = "prompt",
    answer: str = "answer",
) -> None:
    """Prints the measures of a baseline, with intervals over prompts (95 %)."""
    rows = sources.read(prompts, (prompt,))
    asked = [row[prompt] for row in rows]
    right = [verifiers.references(row.get(answer)) for row in rows]
    learned = sources.read(corpus, (prompt,)) if corpus else []
    if kind != "first_sentence" and not learned:
        raise SystemExit(f"error: corpus is empty, and {kind} is learned from it: name its files")
    if kind == "most_frequent":
        number = lambda texts: answers.number(texts[0])
        learnt = [number(verifiers.references(x.get(answer))) for x in learned]
        (best, _), *_ = Counter(learnt).most_common(1)
        found = bootstrap_interval(np.array([float(number(x) == best) for x in right]))
        print(f"accuracy of {best}: {found.mean:.3f} ({found.low:.3f} to {found.high:.3f})")
        return
    if kind == "first_sentence":
        said = [re.split(r"(?<=[.!?])\s", text.strip())[0] for text in asked]
    else:
        table = dictionary([(x[prompt], verifiers.references(x.get(answer))[0]) for x in learned])
        said = [sentence([table.get(word, word) for word in words(text)]) for text in asked]
    for name, x in references.compare([*references.OVERLAPS], said, right, asked).items():
        print(f"{name}: {x['mean']:.3f} ({x['low']:.3f} to {x['high']:.3f})")


if __name__ == "__main__":
    tyro.cli(main)
