"""The results of a run on disk: written, found again, and printed."""

import sys

import rich
from rich.table import Table

from rlhf_jax.devices import hosts, process
from rlhf_jax.runs import disk, report, surroundings, tracker
from rlhf_jax.runs import run as runs

CALIBRATION = "the model is this sure, from", "to", "pairs", "mean probability", "was right"
"""Column names of the calibration table; other tables name their own."""


def write(folder, results: dict, **rows):
    """Writes results.json (with the time of each stage), NAME.jsonl for each of `rows`, and report.html
    last."""
    if not hosts.is_first():
        return
    results = results | {
        "seconds": runs.seconds(folder),
        "peak memory, GiB": surroundings.peak_memory(),
    }
    for name, lines in rows.items():
        disk.write_json(folder / f"{name}.jsonl", lines)
    disk.write_json(folder / "results.json", results)
    report.write(folder)
    tracker.conclude(folder, results, rows.get("samples", ()))


def stands(folder) -> bool:
    """True where `write` has finished; a torn report or damaged results are reported, and written again."""
    page, results = folder / "report.html", folder / "results.json"
    if not page.exists():
        return False
    try:
        if not isinstance(disk.read_json(results), dict):
            raise ValueError(f"{results} holds no results")
        if not page.read_bytes().rstrip().endswith(b"</html>"):
            raise ValueError(f"{page} is torn")
    except (FileNotFoundError, ValueError) as error:
        print(f"the results are made again: {error}", file=sys.stderr)
        return False
    return True


def is_finished(folder, again: str, columns: dict[str, tuple[str, ...]] | None = None) -> bool:
    """True for a run that has its results, after showing them."""
    if not stands(folder):
        return False
    print("this run is finished")
    show(folder, again, columns)
    return True


def show(folder, again: str, columns: dict[str, tuple[str, ...]] | None = None):
    """Prints the numbers, the command for another run, and the run directory; wide tables are shortened."""
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

    results = disk.read_json(folder / "results.json")
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
    print(f"start another: {again}")
    print(f"report: {folder / 'report.html'}")
    print(folder)


def _cell(value) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.3f}\n{_ends(value, 2)}"
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _ends(interval, digits) -> str:
    """The ends of an interval; results.json has null where a single value made them infinite."""
    if interval["low"] is None or interval["high"] is None:
        return "unknown"
    return f"{interval['low']:.{digits}f} to {interval['high']:.{digits}f}"


def again(name: str) -> str:
    """The command that starts another run."""
    return f"{process.command()} {name} --seed 1 (or any other setting, or --run NEW_FOLDER)"
