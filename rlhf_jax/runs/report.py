"""One page that says how a run went: report.html, with everything inside it and no scripts.

`templates/report.html.j2` is the page, and `templates/report.css` its style. The page is made from the files
of the run alone, and each is optional but `config.json`:

    results.json    nested results; a value is a number, a text, {"mean", "low", "high"}, or rows
                    (a list of flat objects) that become a table. `gold.before`, `gold.after` and
                    `kl` also become points in the picture of gold against KL.
    metrics.jsonl   every metric becomes a curve
    training_samples.jsonl    {"stage", "iteration", "prompt", "response", NAME: number}
    samples.jsonl   {"method", "prompt", "before", "after", "before_gold", "after_gold", ..."_score",
                    ..."_python_reward"}, each number where there is one
    tokens.jsonl    {"prompt", "tokens": [text], "kl": [...], "value": ..., "advantage": ..., "reward": ...}
    stages/*/done.json
"""

import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jinja2

from rlhf_jax.runs import metrics, pictures
from rlhf_jax.runs.disk import read_json
from rlhf_jax.runs.metric_names import SHOWN, areas, capital, words
from rlhf_jax.runs.run import CONFIG, read_config

QUANTITIES = ("kl", "value", "advantage", "reward")  # of each token
JUDGED = ("gold", "score", "python_reward")  # of each sample
NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"  # the first stands where there is no number
ENDS = ("mean", "low", "high")  # of an interval
SIDES = ("before", "after")  # of a result
OF_TIME = ("seconds", "peak memory, GiB")  # the results that stand beside the stages
SAMPLES, TOKEN_ROWS, TIMES, PROMPTS = 12, 12, 4, 4  # how many are shown


class Section(NamedTuple):
    """A part of the page: its heading, the macro of the template that shows it, and what that is given."""

    title: str
    kind: str
    content: Any

    @property
    def id(self) -> str:
        """Where links of the page lead."""
        return re.sub("[^a-z0-9]+", "-", self.title.lower())


def write(run: pathlib.Path) -> pathlib.Path:
    """Writes `run/report.html` and returns its path; raises ValueError if `run` is no run."""
    if not (run / CONFIG).exists():
        raise ValueError(f"{run} holds no config.json, so it is no run: give the folder of a run")
    config = read_config(run)
    results = _optional(run / "results.json", {})
    rows = metrics.read(run / metrics.FILE)
    sections = [
        Section("Before and after", "compared", _compared(results)),
        *([] if _pairs(results) else [Section("Results", "results", _results(results))]),
        Section("Samples side by side", "samples", _samples(_optional(run / "samples.jsonl", []))),
        Section("Samples over time", "over_time", _over_time(metrics.read(run / metrics.SAMPLES))),
        Section("Gold against KL", "gold", pictures.gold_against_kl(rows, _evaluated(results))),
        *_curves(rows),
        Section("Token by token", "tokens", _tokens(_optional(run / "tokens.jsonl", []))),
        *([Section("Further results", "results", _results(results))] if _pairs(results) else []),
        Section("Time", "stages", _stages(run, results)),
        Section("Settings", "settings", _settings(config)),
    ]
    page = PAGES.get_template("report.html.j2").render(
        name=run.resolve().name,
        config=config,
        commit=config.get("commit"),
        devices=config.get("devices"),
        sections=[section for section in sections if section.content],
    )
    path, partial = run / "report.html", run / ".report.html.partial"
    # half an emoji, or a file whose name is no UTF-8, is written as an escape
    partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)
    return path


def _optional(path, absent):
    return read_json(path) if path.exists() else absent


# --- what the template calls


def said(x) -> str:
    """Anything as text; numbers to four digits."""
    if isinstance(x, bool) or x is None:
        return {True: "yes", False: "no", None: NONE}[x]
    if isinstance(x, float):
        return f"{x:.4g}".replace("-", MINUS) if math.isfinite(x) else NONE
    return ", ".join(map(str, x)) if isinstance(x, list) else str(x)


def _is_number(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _is_interval(x) -> bool:
    return isinstance(x, dict) and x.keys() >= {*ENDS}


def _measured(row: dict) -> list[str]:
    """The numbers of a response over time, by name."""
    rounded = {name: round(x, 3) + 0.0 for name, x in row.items() if isinstance(x, float)}
    return [f"{words(name)} {said(x)}" for name, x in rounded.items()]


def _judged(row: dict, who: str) -> list[str]:
    found = ((kind, row.get(f"{who}_{kind}")) for kind in JUDGED)
    return [f"{words(kind)} {said(x)}" for kind, x in found if x is not None]


PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)
PAGES.filters |= {"said": said, "words": words, "capital": capital, "numbers": _judged}
PAGES.filters |= {"measured": _measured}
PAGES.filters |= {"fields": lambda rows: dict.fromkeys(name for row in rows for name in row)}
PAGES.globals |= {"small": pictures.SMALL, "wide": pictures.WIDE}
PAGES.tests |= {"interval": _is_interval, "right": lambda x: _is_number(x) or _is_interval(x)}


# --- results


def _flat(tree, prefix=()):
    """Pairs of a path and what is no further nesting."""
    if isinstance(tree, dict) and not _is_interval(tree):
        for name, x in tree.items():
            yield from _flat(x, (*prefix, name))
    else:
        yield prefix, tree


def _is_rows(x) -> bool:
    return isinstance(x, list) and bool(x) and all(isinstance(row, dict) for row in x)


def _pairs(results) -> dict[str, dict]:
    """The results that were measured before and after."""
    return {n: x for n, x in results.items() if isinstance(x, dict) and x.keys() == {*SIDES}}


def _compared(results) -> dict:
    """Values before and after, each pair on a scale of its own, and the other intervals."""
    rows = [
        dict(zip(SIDES, _group(name, [((side,), x) for side, x in pair.items()]), strict=True))
        | {"label": name}
        for name, pair in _pairs(results).items()
    ]
    alone = [(name, x) for name, x in results.items() if _is_interval(x)]
    return {"rows": rows, "alone": alone, "gold": "gold" in results} if rows else {}


def _results(results) -> dict:
    """The results that no other section shows, in groups, and those that are tables."""
    shown = {*_pairs(results), *OF_TIME}
    if _pairs(results):
        shown |= {name for name, x in results.items() if _is_interval(x)}
    groups, tables, alone = {}, [], 0
    for path, x in _flat({name: x for name, x in results.items() if name not in shown}):
        if _is_rows(x):
            tables.append((": ".join(path), x))
        else:
            alone += (
                len(path) > 1
            )  # neighbours without a group stand together, in the order of the file
            groups.setdefault(path[0] if len(path) > 1 else alone, []).append((path, x))
    named = lambda name: name if isinstance(name, str) else ""
    groups = [(named(name), _group(named(name), rows)) for name, rows in groups.items()]
    return {"groups": groups, "tables": tables} if groups or tables else {}


def _group(name, entries) -> list[dict]:
    """The rows of one group; its intervals are drawn on one scale if there are several."""
    drawn = [x for _, x in entries if _is_interval(x) and all(_is_number(x[end]) for end in ENDS)]
    low = min((x["low"] for x in drawn), default=0)
    high = max((x["high"] for x in drawn), default=0)
    on_scale = lambda v: f"{100 * (v - low) / (high - low):.2f}%"

    def place(x):
        if name and x in drawn and len(drawn) > 1 and high > low:
            return {end: on_scale(x[end]) for end in ENDS}
        return None

    return [
        {"label": ": ".join(path[1:] or path), "value": x, "place": place(x)} for path, x in entries
    ]


def _evaluated(results):
    """(KL, gold, label) of the evaluations before and after, where results have them."""
    interval = lambda x: x if _is_interval(x) else {"mean": x, "low": x, "high": x}
    gold, kl = results.get("gold", {}), results.get("kl", math.nan)
    after = kl.get("after", math.nan) if isinstance(kl, dict) and not _is_interval(kl) else kl
    found = []
    for label, x in (("before", results.get("kl before training", 0.0)), ("after", after)):
        if isinstance(gold, dict) and label in gold:
            point = interval(x), interval(gold[label])
            if all(_is_number(value) for end in point for value in end.values()):
                found.append((*point, label))
    return found


# --- the rest


def _curves(rows) -> Iterator[Section]:
    """A section for each area of metrics; the panels after the first few of it are folded."""
    for n, (area, panels) in enumerate(areas(rows).items()):
        drawn = [panel._asdict() | {"picture": pictures.curves(panel, rows)} for panel in panels]
        content = {"shown": drawn[:SHOWN], "folded": drawn[SHOWN:], "first": n == 0}
        yield Section(f"Curves: {area}" if area else "Curves", "curves", content)


def _samples(rows) -> dict:
    if not rows:
        return {}
    first = list({row["prompt"]: row for row in reversed(rows)}.values())[::-1]  # of each prompt
    return {"rows": first[:SAMPLES], "count": len(rows), "method": rows[0].get("method", "RL")}


def _over_time(rows) -> dict:
    """The first prompts of the last stage that has samples, and their responses at a few iterations."""
    rows = [row for row in rows if row["stage"] == rows[-1]["stage"]]
    all_times = sorted({row["iteration"] for row in rows})
    last = len(all_times) - 1
    times = sorted({all_times[round(n * last / (TIMES - 1))] for n in range(TIMES)}) if rows else []
    lines: dict[str, dict[int, dict]] = {}
    for row in rows:
        if row["iteration"] in times:
            lines.setdefault(row["prompt"], {})[row["iteration"]] = row
    return {"times": times, "lines": list(lines.items())[:PROMPTS]} if times else {}


def _tokens(rows) -> dict:
    rows = rows[:TOKEN_ROWS]
    size = lambda name: max(
        (abs(x) for row in rows for x in row.get(name, []) if x is not None), default=0.0
    )
    sizes = {name: float(size(name)) for name in QUANTITIES if any(name in row for row in rows)}
    lines = lambda row: {
        name: _coloured(row["tokens"], row[name], sizes[name]) for name in sizes if name in row
    }
    responses = [{"prompt": row["prompt"], "lines": lines(row)} for row in rows]
    return {"sizes": sizes, "responses": responses} if sizes else {}


def _coloured(tokens, values, size):
    """Each token with its number, and the colour of that: its sign, and its strength beside `size`."""
    for token, value in zip(tokens, values, strict=True):
        yield {
            "token": token.replace("\n", "\N{RETURN SYMBOL}") or "\N{EMPTY SET}",
            "number": NONE if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS),
            "exact": "not finite" if value is None else said(float(value)),
            "sign": ("plus" if value > 0 else "minus") if value and size else "",
            "strength": f"{0.6 * abs(value) / size:.3f}" if value and size else "",
        }


def _stages(run, results) -> dict:
    done = sorted(run.glob("stages/*/done.json"), key=lambda path: path.stat().st_mtime_ns)
    rows = [{"stage": path.parent.name} | read_json(path) for path in done]
    return {"rows": rows, "memory": results.get(OF_TIME[1])} if rows else {}


def _settings(config) -> list[tuple[str, list[dict]]]:
    rows = [{"setting": ".".join(path), "value": x} for path, x in _flat(config["settings"])]
    versions = [{"package": name, "version": x} for name, x in config["versions"].items()]
    return [(name, part) for name, part in (("Settings", rows), ("Versions", versions)) if part]
