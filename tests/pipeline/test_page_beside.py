"""A page that a program serves: its end with the program, its answers after a start, and its refusals."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

pytest.importorskip("fastapi")

from rlhf_jax.pipeline.page import collect, served

ITEMS = [
    {"id": f"i{n}", "kind": "pair", "prompt": "?", "responses": [f"a{n}", f"b{n}"], "wanted": 2}
    for n in range(4)
]


def first(item):
    """The response that is first in the alphabet."""
    texts = [x["text"] for x in item["responses"]]
    return {"degree": -1 if texts[0] < texts[1] else 1}


def nobody(item):
    raise AssertionError(f"asked about {item['id']} again")


def said(rows):
    return sorted((x["item"]["id"], x["annotator"], x["preference"]) for x in rows)


def test_everybody_judges_everything_and_the_next_start_knows_it(tmp_path):
    with served(tmp_path, simulated=2) as page:
        rows = collect(page, ITEMS, [first, first])
    assert said(rows) == [(f"i{n}", who, "a") for n in range(4) for who in ("person 1", "person 2")]
    assert {x["simulated"] for x in rows} == {True}
    with served(tmp_path, simulated=2) as page:  # nobody is asked again
        again = collect(page, ITEMS, [nobody, nobody])
    assert json.dumps(again) == json.dumps(rows)


def test_too_few_people_are_said_and_a_page_that_cannot_start_says_why(tmp_path):
    with (
        served(tmp_path / "few", simulated=1) as page,
        pytest.raises(ValueError, match="4 of 8 judgements were made"),
    ):
        collect(page, ITEMS, [first])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "feedback.db").write_text("no database" * 100)
    with (
        pytest.raises(ValueError, match="the labelling page does not start"),
        served(tmp_path / "other", annotators=1),
    ):
        pass


@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="reads /proc")
def test_the_page_ends_with_the_program_that_was_killed(tmp_path):
    """SIGKILL leaves no time to end anything; the page sees the end of its standard input."""
    program = (
        "import pathlib, sys, time\n"
        "from rlhf_jax.pipeline.page import served\n"
        f"with served(pathlib.Path({str(tmp_path)!r}), simulated=1) as page:\n"
        "    print(page.owner.url, flush=True)\n"
        "    time.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    children = pathlib.Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    (page,) = [int(x) for x in children]
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    while alive(page):
        pass


def alive(pid: int) -> bool:
    """False for a process that is gone, or ended and not yet collected."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
