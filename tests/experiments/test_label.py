"""The command `label`, from items to an export that experiments read, with simulated people at its page."""

import contextlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import runs

import launch
from rlhf_jax.data import comparisons, sources
from rlhf_jax.people import client
from rlhf_jax.people.annotators import AnnotatorConfig
from rlhf_jax.tasks import reviews

pytest.importorskip("fastapi", reason="the labelling page needs the extra [feedback]")
LABEL = [sys.executable, str(runs.ROOT / "launch.py"), "label"]


@contextlib.contextmanager
def page(folder, *settings):
    """(address, token of the owner, tokens of annotators) of a page that is served in a child process."""
    command = [*LABEL, "--demo", "--number", "6", "--port", "0", "--to", "label", *settings]
    served = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert served.stdout
    links = []
    for line in served.stdout:
        links += re.findall(r"^(?:owner|annotator).*: (http://\S+)/i/(\S+)", line)
        if len(links) == 3 or "have links already" in line:
            break
    try:
        yield links[0][0], links[0][1], [token for _, token in links[1:]]
    finally:
        served.send_signal(signal.SIGTERM)
        served.communicate()
        assert served.returncode == 0


def gold(prompt, responses):
    return reviews.golds([prompt] * len(responses), responses)


def test_people_judge_and_what_they_said_is_learned_from(tmp_path, capsys):
    certain = AnnotatorConfig(scale=1000.0, noise=0.0)
    with page(tmp_path, "--people", "2") as (url, owner, people):
        counts = [
            client.work(client.Client(url, x), client.Taste(gold, certain, 0).choose)
            for x in people
        ]
        assert sum(counts) == 6
        asked = client.Client(url, owner)
        assert all(row["stands"] for row in asked.export("raw"))
        rows = asked.export()
        with pytest.raises(ValueError, match="refuses"):
            client.Client(url, people[0]).export()
        with pytest.raises(ValueError, match=r"refuses \(401\)"):
            client.Client(url, "x" * 43).lease()
    sources.write_jsonl(tmp_path / "said.jsonl", rows)
    found, ties = comparisons.read_comparisons(str(tmp_path / "said.jsonl"))
    assert len(found) + ties == 6 and {x.prompt for x in found} <= {row["prompt"] for row in rows}
    for x in found:
        better, worse = gold(x.prompt, [x.chosen, x.rejected])
        assert better >= worse and x.probability == 1.0
    with page(tmp_path, "--people", "2") as (
        url,
        owner,
        people,
    ):  # nothing is asked or invited again
        assert not people and client.Client(url, owner).export() == rows
    copied = subprocess.run(
        [*LABEL, "--to", "label", "--backup", "copy.db"], cwd=tmp_path, check=False
    )
    assert copied.returncode == 0 and (tmp_path / "copy.db").exists()
    other = ["label", "--demo", "--number", "7", "--to", str(tmp_path / "label")]
    assert launch.main(other) == 1
    assert "holds the items of another command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("", "no source is given: give one of demo, run, pairs and task"),
        ("--demo --task reviews", "demo and task are given: give one of"),
        ("--demo --against sft", "against = 'sft' has no effect because no run is given"),
        ("--pairs x.jsonl --number 3", "number = 3 has no effect because a file has its items"),
        ("--run none", "none"),
        ("--run none --against sft --kind stars", "compares two policies"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_sentence(tmp_path, capsys, settings, said):
    command = ["label", *settings.split(), "--to", str(tmp_path / "to")]
    assert launch.main(command) in (1, 2)
    errors = capsys.readouterr().err.strip()
    assert said in errors and errors.count("\n") == 0


def test_an_answer_depends_on_the_person_and_the_pair_and_not_on_the_order():
    item = lambda *said: {"prompt": "p", "responses": [{"text": x} for x in said]}
    score = lambda prompt, said: np.array([len(x) / 20 for x in said])
    answers = set()
    for seed in range(40):
        choose = client.Taste(score, AnnotatorConfig(), seed).choose
        one, two = choose(item("a longer text", "a text")), choose(item("a text", "a longer text"))
        assert one["degree"] == -two["degree"] != 0 and one == choose(
            item("a longer text", "a text")
        )
        answers.add(one["degree"] < 0)
    assert answers == {True, False}  # the shorter one wins now and then
