import html.parser
import itertools
import math
import re

import numpy as np
import pytest

from rlhf_jax.runs import metrics, pictures, report, run

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


EVERY = [name for _, *panels in pictures.PANELS for _, names in panels for name in names]
FEW = ["objective/gold", "objective/kl", "objective/score"]


def whole_run(tmp_path, evil, names=FEW):
    place = run.open_run(evil, {"name": evil, "ppo": {"lr": 0.1}}, str(tmp_path / "run"))
    with metrics.open_writer(place, "ppo") as write:
        for i in range(60):
            row = dict.fromkeys(names, i + 0.5)
            gaps = {"ppo/value_loss": math.nan, "reward/accuracy": math.nan if i % 7 else i}
            write(i, row | {name: gaps[name] for name in gaps if name in names})
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
    run.write_json(place / "results.json", results)
    sample = {"method": evil, "prompt": evil, "before": evil, "after": evil} | {
        f"{who}_{kind}": 0.25 for who in ("before", "after") for kind in ("gold", "score")
    }
    run.write_json(place / "samples.jsonl", [sample] * 40)
    values = {name: [-1.5, 0.0, None] for name in report.QUANTITIES}
    run.write_json(place / "tokens.jsonl", [{"prompt": evil, "tokens": [evil, "", "\n"], **values}])
    run.write_json(
        place / "stages" / evil.replace("/", "") / "done.json", {"iterations": 9, "seconds": 1.5}
    )
    return place


def test_nothing_that_a_model_says_becomes_markup(tmp_path):
    path = report.write(whole_run(tmp_path, EVIL))
    text = path.read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags and "img" not in tags
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    said = "".join(page.text)
    assert said.count(EVIL) > 90  # each sample holds it three times
    assert "alert" not in said.replace(EVIL, "").replace(EVIL.replace("/", ""), "")
    # nothing is fetched: the only addresses are the names of the SVG namespaces and links in the page
    assert not re.search(r"url\((?!#)|@import", text)
    for _, attrs in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith("#")


def test_half_an_emoji_is_written_as_an_escape(tmp_path):
    place = run.open_run("sentiment", {}, str(tmp_path / "run"))
    run.write_json(
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
    assert len([h for h in headings if h == 2]) == 6 + len(pictures.PANELS)
    for tag, attrs in page.elements:
        assert tag != "svg" or attrs.get("aria-label") or attrs.get("aria-hidden")
        assert tag != "th" or attrs["scope"]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    targets = {attrs["href"][1:] for tag, attrs in page.elements if tag == "a"}
    headers = [i for i in ids if re.fullmatch("[a-z-]+", i)]
    assert targets == set(headers) and len(headers) == len(targets)
    panels = sum(len(panels) for _, *panels in pictures.PANELS)
    assert kinds.count("figure") == panels + 1


def test_numbers_are_readable_without_colour(text):
    text = text.replace("\N{MINUS SIGN}", "-")
    assert '-0.1235 <span class="soft">(-0.2235 to -0.02346)' in text
    token = (
        '<span class="token minus" style="--a: 0.600" title="KL -1.5">sentiment<small>-1.50</small>'
    )
    assert text.count(token) == 1
    assert "30 of 40 held-out prompts" in text
    assert "kl goes from 0.5 to 59.5" in text
    assert "value loss is never finite." in text


@pytest.mark.parametrize("present", [(), ("metrics.jsonl",), ("results.json",), ("tokens.jsonl",)])
def test_a_run_that_has_only_some_of_the_files(tmp_path, present):
    place = whole_run(tmp_path, "reward")
    for path in [*place.glob("*.json*"), *place.glob("stages/*/*")]:
        if path.name not in ("config.json", *present):
            path.unlink()
    page = Page(report.write(place).read_text())
    assert "Settings" in page.text
    assert ("Results" in page.text) == ("results.json" in present)
    assert ("Reinforcement learning" in page.text) == ("metrics.jsonl" in present)


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
