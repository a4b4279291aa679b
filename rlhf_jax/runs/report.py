"""One page that says how a run went: report.html, with everything inside it and no scripts.

It is made from the files of the run alone, and each is optional but `config.json`:

    results.json    nested results; a value is a number, a text, {"mean", "low", "high"}, or rows
                    (a list of flat objects) that become a table. `gold.before`, `gold.after` and
                    `kl` also become points in the picture of gold against KL.
    metrics.jsonl   the curves of pictures.PANELS
    samples.jsonl   {"method", "prompt", "before", "after", "before_gold", "after_gold", ..."_score",
                    ..."_python_reward"}, each number where there is one
    tokens.jsonl    {"prompt", "tokens": [text], "kl": [...], "value": ..., "advantage": ..., "reward": ...}
    stages/*/done.json
"""

import html
import math
import pathlib
import re

from rlhf_jax.runs import metrics, pictures
from rlhf_jax.runs.run import CONFIG, read_config, read_json

QUANTITIES = ("kl", "value", "advantage", "reward")  # of each token
NONE = "\N{EN DASH}"  # stands where there is no number
SAMPLES, TOKEN_ROWS = 30, 12  # how many are shown

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --ink: #1d2127; --soft: #5d6673; --line: #dcdfe3;
  --card: #fff; --plus: 47 126 216; --minus: 224 114 42; --blue: #1f63b5; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e4e7eb; --soft: #9aa4b1;
  --line: #30363e; --card: #1b1f25; --plus: 60 128 214; --minus: 205 100 36; --blue: #7db4f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; letter-spacing: -.02em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .6rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.soft, caption, figcaption { color: var(--soft); font-size: .875rem; }
a { color: var(--blue); }
code, .number, .token { font-variant-numeric: tabular-nums; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .875em;
  overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0;
  margin: 1rem 0 0; font-size: .925rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; font-size: .925rem; }
caption { text-align: left; padding: 0 0 .4rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .75rem .45rem 0;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; font-size: .825rem; }
tbody th { font-weight: 500; }
td.number, th.number { text-align: right; white-space: nowrap; }
table.narrow { width: auto; min-width: min(26rem, 100%); }
table.narrow :is(th, td):not(:last-child) { padding-right: 1.75rem; }
table.results { width: auto; min-width: min(40rem, 100%); }
table.results tr.group th { padding-top: 1.1rem; color: var(--soft); font-weight: 600;
  font-size: .825rem; }
table.results td.range { width: 13rem; padding-left: .75rem; }
table.results svg { display: block; width: 100%; height: 1.4rem; overflow: visible; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .9rem .9rem .4rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; }
figure.wide { max-width: 40rem; }
figcaption { color: var(--ink); font-weight: 600; padding-bottom: .35rem; }
figure svg { display: block; width: 100%; height: auto; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; width: 33%; }
td.text .badges { display: block; margin-top: .25rem; color: var(--soft); font-size: .8rem;
  white-space: normal; }
.tokens { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .25rem .9rem .6rem; margin: 0 0 1rem; }
.tokens h3 { margin: .6rem 0 .1rem; }
.tokens table { margin: 0; }
.tokens tr:last-child > * { border-bottom: 0; }
.tokens tbody th { width: 6.5rem; }
.token { display: inline-flex; flex-direction: column; white-space: pre; padding: .1rem .2rem;
  margin: 0 1px 3px 0; border-radius: .2rem; line-height: 1.3; }
.token small { font-size: .68rem; opacity: .85; }
.plus { background: rgb(var(--plus) / var(--a)); }
.minus { background: rgb(var(--minus) / var(--a)); }
.legend { display: flex; flex-wrap: wrap; gap: .4rem 1.75rem; padding: 0; list-style: none;
  font-size: .85rem; }
.legend i { display: inline-block; width: 7rem; height: .75rem; margin: 0 .4rem;
  border-radius: .2rem; vertical-align: -.05rem; border: 1px solid var(--line);
  background: linear-gradient(90deg, rgb(var(--minus) / .6), rgb(var(--minus) / 0) 50%,
    rgb(var(--plus) / 0) 50%, rgb(var(--plus) / .6)); }
summary { cursor: pointer; color: var(--blue); }
@media print { body { max-width: none; padding: 0; } figure, .tokens, tr { break-inside: avoid; } }
"""


def write(run: pathlib.Path) -> pathlib.Path:
    """Writes `run/report.html` and returns its path; raises ValueError if `run` is no run."""
    if not (run / CONFIG).exists():
        raise ValueError(f"{run} holds no config.json, so it is no run: give the folder of a run")
    config = read_config(run)
    results = _optional(run / "results.json", {})
    rows = metrics.read(run / metrics.FILE)
    sections = [
        ("Results", _results(results)),
        ("Gold against KL", pictures.gold_against_kl(rows, _evaluated(results))),
        *((heading, pictures.panels(panels, rows)) for heading, *panels in pictures.PANELS),
        ("Samples side by side", _samples(_optional(run / "samples.jsonl", []))),
        ("Token by token", _tokens(_optional(run / "tokens.jsonl", []))),
        ("Time", _stages(run)),
        ("Settings", _settings(config)),
    ]
    sections = [(title, re.sub("[^a-z]+", "-", title.lower()), x) for title, x in sections if x]
    links = "".join(f'<li><a href="#{name}">{_text(title)}</a></li>' for title, name, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{_text(title)}</h2>{content}</section>'
        for title, name, content in sections
    )
    title = _text(config["experiment"])
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}: report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><header><h1>{title}</h1>{_byline(run, config)}"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n<main>{body}</main></body></html>\n'
    )
    path, partial = run / "report.html", run / ".report.html.partial"
    # half an emoji, or a file whose name is no UTF-8, is written as an escape
    partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)
    return path


def _optional(path, absent):
    return read_json(path) if path.exists() else absent


# --- text and tables


def _text(x) -> str:
    """Anything as escaped text; numbers to four digits."""
    if isinstance(x, bool) or x is None:
        x = {True: "yes", False: "no", None: NONE}[x]
    elif isinstance(x, float):
        x = f"{x:.4g}".replace("-", "\N{MINUS SIGN}") if math.isfinite(x) else NONE
    return html.escape(str(x))


def _words(name) -> str:
    """The name of a field as words, its abbreviations in capitals."""
    words = str(name).replace("_", " ")
    return _text(re.sub(r"\b(eos|kl|ppo|sft)\b", lambda found: found[0].upper(), words))


def _capital(text) -> str:
    return text[:1].upper() + text[1:]


def _is_number(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _table(rows, caption, kind="") -> str:
    """Flat objects as rows, under the names of their fields."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    right = lambda x: ' class="number"' if _is_number(x) or _is_interval(x) else ""
    cell = lambda x: f"<td{right(x)}>{_value(x)}</td>"
    head = "".join(f'<th scope="col"{right(rows[0].get(n))}>{_words(n)}</th>' for n in names)
    body = "".join("<tr>" + "".join(cell(row.get(n)) for n in names) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _is_interval(x) -> bool:
    return isinstance(x, dict) and {"mean", "low", "high"} <= x.keys()


def _value(x) -> str:
    if _is_interval(x):
        return f'{_text(x["mean"])} <span class="soft">({_text(x["low"])} to {_text(x["high"])})</span>'
    return _text(", ".join(map(str, x)) if isinstance(x, list) else x)


def _flat(tree, prefix=()):
    """Pairs of a path and what is no further nesting."""
    if isinstance(tree, dict) and not _is_interval(tree):
        for name, x in tree.items():
            yield from _flat(x, (*prefix, name))
    else:
        yield prefix, tree


def _is_rows(x) -> bool:
    return isinstance(x, list) and bool(x) and all(isinstance(row, dict) for row in x)


# --- results


def _results(results) -> str:
    tables = [(path, x) for path, x in _flat(results) if _is_rows(x)]
    groups = {"": []}  # what belongs to no group comes first
    for path, x in _flat(results):
        if not _is_rows(x):
            groups.setdefault(path[0] if len(path) > 1 else "", []).append((path, x))
    body = "".join(_group(name, entries) for name, entries in groups.items())
    page = (
        '<div class="scroll"><table class="results">'
        "<caption>Brackets hold confidence intervals.</caption>"
        '<thead><tr><th scope="col">Result</th><th scope="col" class="number">Value</th>'
        f'<th scope="col">On one scale</th></tr></thead><tbody>{body}</tbody></table></div>'
    )
    page = page if any(groups.values()) else ""
    return page + "".join(
        _table(rows, _capital(_words(": ".join(path))), "narrow") for path, rows in tables
    )


def _group(name, entries) -> str:
    """The rows of one group; its intervals are drawn on one scale if there are several."""
    ranges = [
        x for _, x in entries if _is_interval(x) and _is_number(x["low"]) and _is_number(x["high"])
    ]
    low, high = (
        min((x["low"] for x in ranges), default=0),
        max((x["high"] for x in ranges), default=0),
    )
    head = f'<tr class="group"><th scope="rowgroup" colspan="3">{_capital(_words(name))}</th></tr>'
    body = head if name else ""
    for path, x in entries:
        label = _words(": ".join(path[1:] or path))
        drawn = name and x in ranges and len(ranges) > 1 and high > low
        place = lambda v: f"{100 * (v - low) / (high - low):.2f}%"
        picture = (
            '<svg aria-hidden="true"><line x1="0" x2="100%" y1="50%" y2="50%" stroke="currentColor" '
            f'opacity=".18"/><line x1="{place(x["low"])}" x2="{place(x["high"])}" y1="50%" y2="50%" '
            f'stroke="{pictures.COLOURS[0]}" stroke-width="5" stroke-linecap="round" opacity=".55"/>'
            f'<circle cx="{place(x["mean"])}" cy="50%" r="4.5" fill="{pictures.COLOURS[0]}"/></svg>'
            if drawn
            else ""
        )
        body += (
            f'<tr><th scope="row">{label}</th><td class="number">{_value(x)}</td>'
            f'<td class="range">{picture}</td></tr>'
        )
    return body


# --- the points of the picture of gold against KL


def _evaluated(results):
    """(KL, gold, label, marker) of the evaluations before and after, where results have them."""
    interval = lambda x: x if _is_interval(x) else {"mean": x, "low": x, "high": x}
    gold, kl = results.get("gold", {}), results.get("kl", math.nan)
    after = kl.get("after", math.nan) if isinstance(kl, dict) and not _is_interval(kl) else kl
    found = []
    for label, x, marker in (("before", 0.0, "s"), ("after", after, "D")):
        if isinstance(gold, dict) and label in gold:
            point = interval(x), interval(gold[label])
            if all(_is_number(value) for end in point for value in end.values()):
                found.append((*point, label, marker))
    return found


# --- samples and tokens


def _samples(rows) -> str:
    if not rows:
        return ""

    def said(row, who):
        numbers = [
            f"{_words(kind)} {_text(row[f'{who}_{kind}'])}"
            for kind in ("gold", "score", "python_reward")
            if row.get(f"{who}_{kind}") is not None
        ]
        badges = f'<span class="badges number">{" · ".join(numbers)}</span>' if numbers else ""
        return f'<td class="text">{_text(row.get(who, NONE))}{badges}</td>'

    body = "".join(
        f'<tr><td class="text">{_text(row["prompt"])}</td>{said(row, "before")}{said(row, "after")}</tr>'
        for row in rows[:SAMPLES]
    )
    caption = (
        f"{min(len(rows), SAMPLES)} of {len(rows)} held-out prompts; all are in samples.jsonl."
    )
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr><th scope="col">Prompt</th>'
        '<th scope="col">Before (SFT)</th><th scope="col">'
        f"After ({_text(rows[0].get('method', 'RL'))})</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _tokens(rows) -> str:
    rows = rows[:TOKEN_ROWS]
    names = [name for name in QUANTITIES if any(name in row for row in rows)]
    if not names:
        return ""
    sizes = {
        name: max((abs(x) for row in rows for x in row.get(name, []) if x is not None), default=0.0)
        for name in names
    }
    legend = "".join(
        f"<li><strong>{_words(name)}</strong> {_text(-float(size))}<i></i>{_text(float(size))}</li>"
        for name, size in sizes.items()
    )
    cards = []
    for number, row in enumerate(rows, start=1):
        lines = "".join(
            f'<tr><th scope="row">{_words(name)}</th>'
            f"<td>{_coloured(row['tokens'], row[name], name, sizes[name])}</td></tr>"
            for name in names
            if name in row
        )
        cards.append(
            f'<div class="tokens"><h3>Response {number}</h3><p class="soft">Prompt: '
            f"{_text(row['prompt'])}</p><table><tbody>{lines}</tbody></table></div>"
        )
    return (
        "<p>Each token of a response, coloured by what it was worth: orange is negative, blue is "
        "positive, and full colour is the largest magnitude on this page. The number stands below "
        f'each token.</p><ul class="legend" aria-label="Colour scales">{legend}</ul>{"".join(cards)}'
    )


def _coloured(tokens, values, name, size) -> str:
    spans = []
    for token, value in zip(tokens, values, strict=True):
        shown = _text(token.replace("\n", "\N{RETURN SYMBOL}") or "\N{EMPTY SET}")
        number = (
            f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
            if value is not None
            else NONE
        )
        colour = ""
        if value and size:
            sign = "plus" if value > 0 else "minus"
            colour = f' {sign}" style="--a: {0.6 * abs(value) / size:.3f}'
        full = _text(float(value)) if value is not None else "not finite"
        spans.append(
            f'<span class="token{colour}" title="{_words(name)} {full}">{shown}<small>{number}</small></span>'
        )
    return "".join(spans)


# --- the rest


def _byline(run, config) -> str:
    commit, devices = config.get("commit"), config.get("devices", {})
    parts = [f"run <code>{_text(run.resolve().name)}</code>"]
    if commit:
        changed = ", changed since" if commit["dirty"] else ""
        parts.append(f"commit <code>{_text(commit['hash'][:10])}</code>{changed}")
    if devices:
        parts.append(_text(f"{devices['count']} {devices['kind']}"))
    if "versions" in config:
        parts.append(_text(f"JAX {config['versions']['jax']}"))
    command = _text(" ".join(["python", *config.get("command", [])]))
    return f'<p class="soft">{" · ".join(parts)}</p><p><code>{command}</code></p>'


def _stages(run) -> str:
    done = sorted(run.glob("stages/*/done.json"), key=lambda path: path.stat().st_mtime_ns)
    rows = [{"stage": path.parent.name} | read_json(path) for path in done]
    return _table(rows, "What each stage took, over all sessions.", "narrow") if rows else ""


def _settings(config) -> str:
    rows = [{"setting": ".".join(path), "value": x} for path, x in _flat(config["settings"])]
    versions = [{"package": name, "version": x} for name, x in config.get("versions", {}).items()]
    content = "".join(
        _table(part, caption)
        for part, caption in ((rows, "Settings"), (versions, "Versions"))
        if part
    )
    return f"<details><summary>All settings and versions</summary>{content}</details>"
