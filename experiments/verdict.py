"""What came of a run, as numbers, as texts side by side, and token by token."""

import numpy as np
import rich
from rich.table import Table

from rlhf_jax import evaluate, report, run
from rlhf_jax.evaluate import bootstrap_interval


def before_and_after(prompts, *, golds, scores, judged) -> dict:
    """Means with intervals over prompts (95 %, bootstrap), and how often PPO beats SFT by gold."""
    sides = lambda values: {
        name: bootstrap_interval(x, prompts)._asdict()
        for name, x in zip(("before", "after"), values, strict=True)
    }
    return {
        "gold": sides(golds),
        "win rate of PPO over SFT, by gold": evaluate.win_rate(
            golds[1], golds[0], prompts
        )._asdict(),
        "score of the reward model": sides(scores),
        "score of the held-out judge": sides(judged),
    }


def kl(prompts, annotated) -> dict:
    """KL of the policy to the reference, nats a response, with its interval over prompts."""
    samples = annotated.samples
    per_response = np.asarray(samples.logprobs - annotated.ref_logprobs).sum(axis=1)
    return bootstrap_interval(per_response, prompts)._asdict()


def of_rewards(margins, train, held_out) -> dict:
    """Held-out accuracy of a reward model beside what length alone says, and how far to trust it."""
    groups = [c.group for c in held_out]
    words = lambda pairs, side: np.array([len(getattr(c, side).split()) for c in pairs])
    length = evaluate.length_baseline(
        words(train, "chosen"),
        words(train, "rejected"),
        words(held_out, "chosen"),
        words(held_out, "rejected"),
        groups,
    )
    return {
        "reward accuracy": {
            "held-out pairs": evaluate.accuracy(margins, groups)._asdict(),
            f"length alone: {length.rule} wins": length.accuracy._asdict(),
        },
        "reward calibration error": evaluate.ece(margins),
        "calibration": [row._asdict() for row in evaluate.calibration_table(margins)],
    }


def sample_rows(prompts, sides, golds, scores) -> list[dict]:
    """Prompt, both responses, and what each was worth."""
    columns = (*(side.texts for side in sides), *golds, *scores)
    names = ("sft", "ppo", "sft_gold", "ppo_gold", "sft_score", "ppo_score")
    plain = [[x if isinstance(x, str) else float(x) for x in column] for column in columns]
    return [
        {"prompt": prompt} | dict(zip(names, row, strict=True))
        for prompt, *row in zip(prompts, *plain, strict=True)
    ]


def token_rows(words, prompts, annotated, batch, kl_coef, shown: int = 8) -> list[dict]:
    """KL, value, advantage and reward of each token of a few responses, to different prompts."""
    samples = annotated.samples
    d = np.asarray(samples.logprobs - annotated.ref_logprobs)
    quantities = {
        "kl": d,
        "value": annotated.values,
        "advantage": batch.advantages,
        "reward": annotated.rewards - kl_coef * d,
    }
    every = max(1, len(prompts) // shown)
    rows = []
    for row in range(0, len(prompts), every)[:shown]:
        said = np.asarray(samples.mask)[row]
        ids = np.asarray(samples.tokens)[row, -len(said) :][said]
        rows.append(
            {"prompt": prompts[row], "tokens": [words.decode([token]) for token in ids]}
            | {name: np.asarray(x)[row][said].tolist() for name, x in quantities.items()}
        )
    return rows


def write(folder, results: dict, **rows):
    """results.json (with the time of each stage), NAME.jsonl for each of `rows`, and report.html last."""
    results = results | {"seconds": run.seconds(folder), "peak memory, GiB": run.peak_memory()}
    for name, lines in rows.items():
        run.write_json(folder / f"{name}.jsonl", lines)
    run.write_json(folder / "results.json", results)
    report.write(folder)


def stands(folder) -> bool:
    """Whether `write` has been here."""
    return (folder / "report.html").exists()


def show(folder, again: str):
    """Prints the numbers, how to start another run, and where this one is."""
    table = Table("result", "value", "95 % interval", box=None, header_style="bold")

    def add(name, value):
        if isinstance(value, dict) and "mean" in value:
            low, high = value["low"], value["high"]
            table.add_row(name, f"{value['mean']:.3f}", f"{low:.3f} to {high:.3f}")
        elif isinstance(value, dict):
            for inner, x in value.items():
                add(f"{name}, {inner}", x)
        elif not isinstance(value, list):
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value), "")

    for name, value in run.read_json(folder / "results.json").items():
        add(name, value)
    rich.print(table)
    calibration = run.read_json(folder / "results.json").get("calibration", [])
    if calibration:
        columns = "the model is this sure", "pairs", "mean probability", "was right"
        table = Table(*columns, box=None, header_style="bold")
        for row in calibration:
            span = f"{row['low']:.2f} to {row['high']:.2f}"
            table.add_row(
                span, str(row["count"]), f"{row['predicted']:.3f}", f"{row['observed']:.3f}"
            )
        rich.print(table)
    print(f"start another: {again}")
    print(f"report: {folder / 'report.html'}")
    print(folder)
