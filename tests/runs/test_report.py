import html.parser
import itertools
import math
import pathlib
import re

import numpy as np
import pytest

from rlhf_jax.runs import disk, metric_names, metrics, pictures, report, run

EVIL = (
    '<script>alert("x")</script>\' & <img src=x onerror=y> </style></title> '
    "{{ 7 * 7 }} {{ config }} {% raw %} {# gone #} ${x} \\u003c"
)
VOID = {"meta", "br", "img", "use", "path", "line", "circle", "rect", "link"}


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and gathers elements and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def interval(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


DOCUMENTED = pathlib.Path(__file__).parents[2] / "docs" / "metrics.md"
OF_NO_ONE = ["weighed/loss", "weighed/odd_thing", "weighed/step/loss", "bare"]  # by a new algorithm
EVERY = sorted({*re.findall("`([a-z]+/[a-z_0-9]+)`", DOCUMENTED.read_text()), *OF_NO_ONE})
FEW = ["objective/gold", "objective/kl", "objective/score"]


def whole_run(tmp_path, evil, names=FEW):
    place = run.open_run(evil, {"name": evil, "ppo": {"lr": 0.1}}, str(tmp_path / "run"))
    with metrics.open_writer(place, "ppo") as write:
        for i in range(60):
            row = dict.fromkeys(names, i + 0.5)
            gaps = {"ppo/value_loss": math.nan, "reward/accuracy": math.nan if i % 7 else i}
            said = [
                {"prompt": f"{n} {evil}", "response": f"{evil} {i}", "kl": 0.5} for n in range(6)
            ]
            row |= {name: gaps[name] for name in gaps if name in names}
            write(i, row, said if i % 10 == 0 else ())
    results = {
        "gold": {"before": interval(-0.1234567), "after": interval(1.5)},
        "kl": interval(7.0),
    }
    results |= {
        "verdict": evil,
        evil: {evil: 3},
        "empty": None,
        "calibration": [{evil: evil, "n": 1}],
    }
    disk.write_json(place / "results.json", results)
    sample = {"method": evil, "before": evil, "after": evil} | {
        f"{who}_{kind}": 0.25 for who in ("before", "after") for kind in ("gold", "score")
    }
    # two responses to each of twenty prompts, of which the page shows the first
    rows = [sample | {"prompt": f"{evil} {i // 2}", "after": f"{evil} {i}"} for i in range(40)]
    disk.write_json(place / "samples.jsonl", rows)
    values = {name: [-1.5, 0.0, None] for name in report.QUANTITIES}
    disk.write_json(
        place / "tokens.jsonl", [{"prompt": evil, "tokens": [evil, "", "\n"], **values}]
    )
    disk.write_json(
        place / "stages" / evil.replace("/", "") / "done.json", {"iterations": 9, "seconds": 1.5}
    )
    return place


def test_nothing_that_a_model_says_becomes_markup(tmp_path):
    path = report.write(whole_run(tmp_path, EVIL, [*FEW, EVIL]))
    text = path.read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags and "img" not in tags
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    said = "".join(page.text)
    # 12 samples hold it three times, 4 prompts over time at 4 iterations five times
    assert said.count(EVIL) > 12 * 3 + 4 * 5
    # nothing is fetched: the only addresses are the names of the SVG namespaces and links in the page
    assert not re.search(r"url\((?!#)|@import", text)
    for _, attrs in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith("#")


def test_half_an_emoji_is_written_as_an_escape(tmp_path):
    place = run.open_run("sentiment", {}, str(tmp_path / "run"))
    disk.write_json(
        place / "samples.jsonl", [{"prompt": "half \ud83d", "before": "", "after": "\x00"}]
    )
    assert "half \\ud83d" in report.write(place).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return report.write(whole_run(tmp_path_factory.mktemp("run"), "sentiment", EVERY)).read_text()


def test_the_page_is_accessible_and_has_every_section(text):
    page = Page(text)
    kinds = [tag for tag, _ in page.elements]
    assert ("html", {"lang": "en"}) in page.elements and kinds.count("h1") == 1
    headings = [int(tag[1]) for tag in kinds if re.fullmatch("h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    areas = {name.rpartition("/")[0].partition("/")[0] for name in EVERY}
    assert len([h for h in headings if h == 2]) == 8 + len(areas)
    for tag, attrs in page.elements:
        assert tag != "svg" or attrs.get("aria-label") or attrs.get("aria-hidden")
        assert tag != "th" or attrs["scope"]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    targets = {attrs["href"][1:] for tag, attrs in page.elements if tag == "a"}
    headers = [attrs["id"] for tag, attrs in page.elements if tag == "h2"]
    assert targets == {*headers} and len(headers) == len(targets) and len(ids) == len({*ids})


def test_every_metric_is_drawn_whoever_names_it(text):
    drawn = re.findall("<figcaption>.* <code>(.*)</code></figcaption>", text)
    assert sorted(name for names in drawn for name in names.split(", ")) == EVERY
    assert "Curves: weighed" in text and ">Odd thing <code>weighed/odd_thing</code>" in text
    order = re.findall("<h2 [^>]*>Curves(?:: )?(.*)</h2>", text)
    assert order[0] == "objective" and order[-1] == "train"


def test_what_stands_together_and_what_is_folded():
    names = ["a/loss", "a/held_out_loss", "a/chosen_logprob", "a/rejected_logprob", "a/z", "a/b"]
    rows = [{"stage": "s", "iteration": 0, "time": 0.0} | dict.fromkeys(names, 1.0)]
    (panels,) = metric_names.areas(rows).values()
    assert [panel.names for panel in panels] == [
        ("a/loss", "a/held_out_loss"), ("a/chosen_logprob", "a/rejected_logprob"), ("a/b",), ("a/z",)
    ]  # fmt: skip
    assert [panel.title for panel in panels[1:]] == ["Log-probability per response, nats", "B", "Z"]


def test_the_areas_of_the_last_stage_come_first():
    row = lambda stage, *names: {"stage": stage, "iteration": 0} | dict.fromkeys(names, 1.0)
    shared = ("train/grad_norm", "loop/loss")
    rows = [
        row("sft", "sft/loss", *shared),
        row("new", "odd/x", "objective/kl", "new/loss", *shared),
    ]
    assert [*metric_names.areas(rows)] == ["objective", "new", "loop", "sft", "odd", "train"]


def test_a_progress_line_shows_what_every_algorithm_can_have():
    headlines = metric_names.headlines
    objective = ["objective/kl", "objective/score", "objective/length"]
    assert headlines(["new/loss", "x/y", *objective]) == [
        "objective/score", "objective/kl", "objective/length", "new/loss"
    ]  # fmt: skip
    assert headlines(["new/held_out_accuracy", "new/loss", "b/c"]) == [
        "new/loss",
        "new/held_out_accuracy",
    ]
    assert headlines(["new/d", "new/c", "new/b", "new/a"]) == ["new/a", "new/b", "new/c"]


def test_a_curve_keeps_its_peaks_and_its_gaps():
    y = np.zeros(5000)
    y[1234], y[77] = 9.0, -3.0
    x, kept = pictures._extremes(np.arange(5000.0), y)
    assert len(x) <= 2 * pictures.SMALL.width and kept.max() == 9.0 and kept.min() == -3.0
    assert x[kept.argmax()] == 1234 and (np.diff(x) > 0).all()
    path = pictures._path(np.arange(5.0), np.array([1.0, math.nan, 2.0, 3.0, math.inf]))
    assert path == "M0.0 1.0h0M2.0 2.0h0L3.0 3.0"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 1.0], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.0, 1500.0], ["0", "500", "1000", "1500"]),
        ([1.0, 1.0001], ["1", "1.00002", "1.00004", "1.00006", "1.00008", "1.0001"]),
        ([-2.0, -2.0], ["-2.1", "-2.05", "-2", "-1.95", "-1.9"]),
        ([math.nan], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.0, 0.0], ["-0.4", "-0.2", "0", "0.2", "0.4"]),
    ],
)
def test_ticks_are_round_and_told_apart(values, texts):
    of, ticks = pictures._axis([np.array(values)], 100, 0)
    assert [text.replace("\N{MINUS SIGN}", "-") for _, text in ticks] == texts
    for place, text in ticks:
        value = float(text.replace("\N{MINUS SIGN}", "-"))
        assert of(value) == pytest.approx(float(place), abs=0.06) and 0 <= float(place) <= 100


def test_curves_beyond_the_colours_are_drawn_too():
    stages = [f"s{n}" for n in range(9)]
    rows = [{"stage": s, "iteration": i, "a/b": i + 1.0} for s in stages for i in range(3)]
    drawn = pictures.curves(metric_names.Panel("B", ("a/b",)), rows)["curves"]
    assert len({(curve["colour"], curve["dash"]) for curve in drawn}) == 9


def test_numbers_are_readable_without_colour(text):
    text = text.replace("\N{MINUS SIGN}", "-")
    assert '-0.1235 <span class="soft">(-0.2235 to -0.02346)' in text
    token = (
        '<span class="token minus" style="--a: 0.600" title="KL -1.5">sentiment<small>-1.50</small>'
    )
    assert text.count(token) == 1
    assert "12 of 40 responses to held-out prompts" in text
    shown = re.findall(r'data-label="After \(sentiment\)">sentiment (\d+)<', text)
    assert shown == [str(2 * i) for i in range(12)]
    times = ["0", "20", "30", "50"]  # four of the six, the first and the last among them
    assert re.findall(r'<th scope="col">Iteration (\d+)</th>', text) == times
    assert text.count('<td class="text" data-label="Iteration 50">sentiment 50<span') == 4
    assert "KL goes from 0.5 to 59.5" in text
    assert "value loss is never finite." in text


@pytest.mark.parametrize("present", [(), ("metrics.jsonl",), ("results.json",), ("tokens.jsonl",)])
def test_a_run_that_has_only_some_of_the_files(tmp_path, present):
    place = whole_run(tmp_path, "reward")
    for path in [*place.glob("*.json*"), *place.glob("stages/*/*")]:
        if path.name not in ("config.json", *present):
            path.unlink()
    page = Page(report.write(place).read_text())
    assert "Settings" in page.text
    assert ("Before and after" in page.text) == ("results.json" in present)
    assert ("Further results" in page.text) == ("results.json" in present)
    assert ("Curves: objective" in page.text) == ("metrics.jsonl" in present)


def test_results_come_first_and_nothing_twice(tmp_path):
    place = whole_run(tmp_path, "reward")
    headings = lambda text: re.findall("<h2 [^>]*>(.*)</h2>", text)
    text = report.write(place).read_text()
    assert headings(text)[:2] == ["Before and after", "Samples side by side"]
    assert text.count("-0.1235".replace("-", report.MINUS)) == 1  # gold before
    disk.write_json(place / "results.json", {"reward accuracy": interval(0.7), "seconds": {"a": 1}})
    text = report.write(place).read_text()
    assert headings(text)[0] == "Results" and "Further results" not in text
    assert "reward accuracy" in text and "seconds" not in headings(text)


def test_equal_runs_give_equal_pages_and_no_run_is_refused(tmp_path):
    place = whole_run(tmp_path, "sentiment")
    first = report.write(place).read_bytes()
    assert report.write(place).read_bytes() == first
    with pytest.raises(ValueError, match="is no run"):
        report.write(tmp_path)


def test_smoothing_is_the_mean_of_its_neighbours():
    y = np.random.default_rng(0).normal(size=85)
    y[3] = np.nan
    got = pictures._smooth(y)
    np.testing.assert_allclose(got[40], y[38:43].mean())
    np.testing.assert_allclose(got[0], y[:3].mean())
    np.testing.assert_allclose(got[3], (y[1] + y[2] + y[4] + y[5]) / 4)


def test_gold_against_kl_holds_each_iteration_and_the_evaluations():
    rows = [{"iteration": i, "objective/gold": i / 2, "objective/kl": float(i)} for i in range(5)]
    rows[3]["objective/gold"] = math.nan
    at = lambda mean: {"mean": mean, "low": mean - 1, "high": mean + 2}
    got = pictures.gold_against_kl(rows, [(at(3.0), at(9.0), "after")])
    (gold,) = got["curves"]  # no reward model was asked
    assert len(gold["dots"]) == 4 and gold["thin"].count("M") == 2
    (point,) = got["points"]
    x, y = ({end: float(v) for end, v in point[axis].items()} for axis in "xy")
    assert pictures.WIDE.left < x["low"] < x["mean"] < x["high"] < pictures.WIDE.right
    assert pictures.WIDE.top < y["high"] < y["mean"] < y["low"] < pictures.WIDE.bottom
    assert not pictures.gold_against_kl([{"iteration": 0, "objective/kl": 1.0}], [])


def test_results_stand_in_the_order_of_their_file():
    found = {
        "score": {"before": 0.0, "after": 1.0},
        "kl": 2.0,
        "wins": 0.5,
        "gold": {"after": 1.0},
        "x": 3.0,
    }
    groups = [
        (name, [row["value"] for row in rows]) for name, rows in report._results(found)["groups"]
    ]
    assert groups == [("", [2.0, 0.5]), ("gold", [1.0]), ("", [3.0])]
    (row,) = report._compared(found)["rows"]
    assert (row["label"], row["before"]["value"], row["after"]["value"]) == ("score", 0.0, 1.0)
