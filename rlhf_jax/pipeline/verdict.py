"""What came of a run, as numbers, as texts side by side, and token by token."""

import sys

import numpy as np
import rich
from rich.table import Table

from rlhf_jax.devices import hosts, process
from rlhf_jax.evaluation import evaluate
from rlhf_jax.evaluation.evaluate import bootstrap_interval
from rlhf_jax.runs import report, run

CALIBRATION = "the model is this sure, from", "to", "pairs", "mean probability", "was right"
"""How the table of calibration names its columns; other tables name their own."""

SHOWN = {
    "gold": "gold",
    "score": "score of the reward model",
    "python_reward": "Python reward",
}
"""What samples.jsonl calls the numbers beside each response, and what the results call them."""


def before_and_after(method, prompts, measured: dict) -> dict:
    """Means with intervals over prompts (95 %), and how often `method` beats SFT.

    `measured` are values [N] before and after by name; the first name says what a win is.
    """
    interval = lambda x: bootstrap_interval(x, prompts)._asdict()
    results = {
        name: dict(zip(("before", "after"), map(interval, both), strict=True))
        for name, both in measured.items()
    }
    first, (before, after) = next(iter(measured.items()))
    wins = evaluate.win_rate(after, before, prompts)._asdict()
    return {first: results.pop(first), f"win rate of {method} over SFT, by {first}": wins} | results


def kl(prompts, log_ratio) -> dict:
    """KL of the policy to the reference, nats a response, with its interval over prompts."""
    return bootstrap_interval(log_ratio.sum(axis=1), prompts)._asdict()


def of_rewards(scores, train, held_out, gold=None) -> dict:
    """Held-out accuracy of a reward model beside what length alone says, and how far to trust it.

    `scores` [N, 2] of the held-out pairs, chosen and rejected; `gold` [N, 2] where it is known.
    """
    groups, margins = [c.group for c in held_out], scores[:, 0] - scores[:, 1]
    words = lambda pairs, side: np.array([len(getattr(c, side).split()) for c in pairs])
    lengths = np.stack([words(held_out, "chosen"), words(held_out, "rejected")], axis=1)
    length = evaluate.length_baseline(
        words(train, "chosen"), words(train, "rejected"), lengths[:, 0], lengths[:, 1], groups
    )
    taste = evaluate.length_report(scores, lengths, gold, groups)
    where_known = lambda found: {k: x._asdict() for k, x in found.items() if x is not None}
    accuracies = {
        "held-out pairs": evaluate.accuracy(margins, groups),
        f"length alone: {length.rule} wins": length.accuracy,
        "where the longer was chosen": taste.accuracy_longer_chosen,
        "where the shorter was chosen": taste.accuracy_shorter_chosen,
    }
    correlations = {"plain": taste.correlation, "given gold": taste.correlation_given_gold}
    return {
        "reward accuracy": where_known(accuracies),
        "correlation of score and length": where_known(correlations),
        "reward calibration error": evaluate.ece(margins),
        "calibration": [row._asdict() for row in evaluate.calibration_table(margins)],
    }


def sample_rows(method, prompts, sides, measured: dict) -> list[dict]:
    """Prompt, both responses, and what each was worth by gold, the reward model and the Python reward."""
    columns = {"before": sides[0].texts, "after": sides[1].texts}
    for kind, name in SHOWN.items():
        values = zip(("before", "after"), measured.get(name, ()), strict=False)
        columns |= {f"{side}_{kind}": map(float, x) for side, x in values}
    return [
        {"method": method, "prompt": prompt} | dict(zip(columns, row, strict=True))
        for prompt, *row in zip(prompts, *columns.values(), strict=True)
    ]


def token_rows(words, prompts, samples, quantities: dict, shown: int = 8) -> list[dict]:
    """Each of `quantities` [N, T] (KL, value, ...), token by token, for a few responses."""
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
    if not hosts.is_first():
        return
    results = results | {"seconds": run.seconds(folder), "peak memory, GiB": run.peak_memory()}
    for name, lines in rows.items():
        run.write_json(folder / f"{name}.jsonl", lines)
    run.write_json(folder / "results.json", results)
    report.write(folder)


def stands(folder) -> bool:
    """Whether `write` has been here and ended; a torn report or damaged results are told, and made again."""
    page, results = folder / "report.html", folder / "results.json"
    if not page.exists():
        return False
    try:
        if not isinstance(run.read_json(results), dict):
            raise ValueError(f"{results} holds no results")
        if not page.read_bytes().rstrip().endswith(b"</html>"):
            raise ValueError(f"{page} is torn")
    except (FileNotFoundError, ValueError) as error:
        print(f"the results are made again: {error}", file=sys.stderr)
        return False
    return True


def show(folder, again: str, columns: dict[str, tuple[str, ...]] | None = None):
    """Prints the numbers, how to start another run, and where this one is; of wide tables some columns."""
    if not hosts.is_first():
        return
    table = Table("result", "value", "95 % interval", box=None, header_style="bold")

    def add(name, value):
        if isinstance(value, dict) and "mean" in value:
            table.add_row(name, f"{value['mean']:.3f}", _ends(value, 3))
        elif isinstance(value, dict):
            for inner, x in value.items():
                add(f"{name}, {inner}", x)
        elif not isinstance(value, list):
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value), "")

    results = run.read_json(folder / "results.json")
    for name, value in results.items():
        add(name, value)
    rich.print(table)
    for name, rows in results.items():
        if isinstance(rows, list) and rows:
            shown = (columns or {}).get(name) or tuple(rows[0])
            table = Table(
                *(shown if name != "calibration" else CALIBRATION), box=None, header_style="bold"
            )
            for row in rows:
                table.add_row(*(_cell(row.get(column)) for column in shown))
            rich.print(table)
    print(f"start another: {again.replace('python launch.py', process.command())}")
    print(f"report: {folder / 'report.html'}")
    print(folder)


def _cell(value) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.3f}\n{_ends(value, 2)}"
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _ends(interval, digits) -> str:
    """An interval's ends; results.json has null where one value alone left them infinite."""
    if interval["low"] is None or interval["high"] is None:
        return "unknown"
    return f"{interval['low']:.{digits}f} to {interval['high']:.{digits}f}"
