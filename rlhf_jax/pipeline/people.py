"""Comparisons that train reward models: from files, or by simulated people on the SFT policy's responses."""

from rlhf_jax.data.comparisons import read_comparisons
from rlhf_jax.people import annotators
from rlhf_jax.pipeline import keys, texts
from rlhf_jax.pipeline.prepare import Prepared
from rlhf_jax.pipeline.texts import Feedback
from rlhf_jax.runs import disk

FILE = "comparisons.jsonl"


def compare(run: Prepared, reference) -> Feedback | None:
    """Comparisons or ratings of the files, or comparisons of two responses per prompt by simulated people;
    None where the method needs none.

    Comparisons by simulated people are kept in the run's comparisons.jsonl.
    """
    if run.texts.task is None or "comparisons" not in run.cfg.needs().needed:
        return run.texts.pairs
    disk.cached(run.folder, FILE, lambda: _compare(run, reference))
    compared, _ = read_comparisons([str(run.folder / FILE)])
    cfg = run.cfg.data
    name, halves = f"data.pairs = {cfg.pairs}", run.cfg.needs().halves
    return texts.divided(compared, cfg, run.cfg.seed, name, halves)


def _compare(run: Prepared, reference) -> list[dict]:
    rows, task, cfg = run.texts.compared, run.texts.task, run.cfg
    assert task is not None
    print(f"comparisons: simulated people judge {len(rows)} pairs of responses", flush=True)
    asked = [row for row in rows for _ in range(2)]
    said = run.generator.generate(reference, asked, keys.key_of(run.cfg.seed, "comparisons")).texts
    a, b = said[::2], said[1::2]
    preferred = annotators.annotate(texts.judged(task, rows, a, b), cfg.annotators, cfg.seed)
    return [
        {"prompt": row.prompt, "responses": [x, y], "preference": best, "annotator": "simulated"}
        for row, x, y, best in zip(rows, a, b, preferred.tolist(), strict=True)
    ]
