"""The texts of a run, by the settings that name their files, and without those that are too long."""

from collections.abc import Callable
from typing import Any

from rlhf_jax.pipeline import lengths, texts


def of_files(read: texts.Texts) -> list[lengths.Texts]:
    """All texts of the files, by the settings that name them: of the corpus, of the feedback, and the
    prompts."""
    told = [*read.pairs.train, *read.pairs.held_out] if read.pairs else []
    corpus = lengths.demonstrated("data.corpus", [*read.corpus, *read.corpus_held_out])
    asked = [x.prompt for x in [*read.rows, *read.rows_held_out]]
    # texts of a setting that names no source are those of another's
    of = lambda *names: next((read.origins[name] for name in names if name in read.origins), {})
    return [
        corpus._replace(origins=of("corpus", "comparisons", "ratings")),
        lengths.judged(told)._replace(origins=of("comparisons", "ratings")),
        lengths.Texts("data.prompts", asked, [], of("prompts", "comparisons", "ratings", "corpus")),
    ]


def without(cfg: Any, words: Any, read: texts.Texts) -> texts.Texts:
    """The texts without the rows of those that are longer than the lengths in the settings.

    Raises ValueError, naming the setting, where that leaves a part of them empty.
    """
    long = lengths.too_long(cfg, words, of_files(read))

    def fitting(items: list, part: lengths.Texts, parts_of: Callable) -> list:
        prompts, answers = set(part.prompts), set(part.answers)
        fits = lambda prompt, said: (
            prompt not in prompts and not any((prompt, x) in answers for x in said)
        )
        found = [item for item in items if fits(*parts_of(item))]
        if items and not found:
            raise ValueError(
                f"{part.setting}: all {len(items)} rows of one side of a split are too long: raise "
                'data.prompt_length and sample.length, or set data.long = "cut"'
            )
        return found

    corpus = lambda items: fitting(items, long[0], lambda pair: (pair[0], pair[1:]))
    judged = lambda items: fitting(items, long[1], lambda x: (x.prompt, x.responses))
    asked = lambda items: fitting(items, long[2], lambda row: (row.prompt, ()))
    train, halves, held_out = read.pairs or ([], ([], []), [])
    pairs = texts.Feedback(judged(train), (judged(halves[0]), judged(halves[1])), judged(held_out))
    return read._replace(
        corpus=corpus(read.corpus),
        corpus_held_out=corpus(read.corpus_held_out),
        rows=asked(read.rows),
        rows_held_out=asked(read.rows_held_out),
        pairs=pairs if read.pairs else None,
    )
