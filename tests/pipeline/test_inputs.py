"""What a run learns from is known by its content, in every experiment that names files."""

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import pytest

import launch
from experiments.methods import reward
from rlhf_jax.pipeline import inputs, reuse, settings, texts
from rlhf_jax.runs import conclusion, disk, identity, run

NO_INPUT = {"run", "start_from", "devices", "rl.best", "to", "stage", "base", "kind", "source"} | {
    "push_to_hub", "pairs", "against", "guidelines", "database", "backup", "judge", "model", "data"
}  # fmt: skip
"""Texts that may be left empty and name nothing that is learned from, or that the tools read."""


def named_texts(cfg, prefix=""):
    """Dotted names of the settings that are texts, and empty by default."""
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            yield from named_texts(value, f"{prefix}{field.name}.")
        elif value == "" and not prefix.startswith(("shared.", "export.")):
            yield prefix + field.name


@pytest.mark.parametrize("name", launch.experiments(launch.EXPERIMENTS))
def test_every_setting_that_names_a_file_is_known(name):
    cfg = launch.load(name).config
    known = {*inputs.DATA, *inputs.MODELS, *inputs.CODE}
    assert {x for x in named_texts(cfg) if "fields" not in x} - NO_INPUT <= known


def rows(path: pathlib.Path, *found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Settings that name a file of each kind."""
    for name in ("model", "base", "words"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
            (tmp_path / name / file).write_text(name)
    chain = lambda folder: [folder, tmp_path / "base"]  # an adapter, and what it adapts
    monkeypatch.setattr(inputs.huggingface, "chain", chain)
    (tmp_path / "reward.py").write_text("def score(prompts, responses): ...")
    for name in "ab":
        rows(tmp_path / f"{name}.jsonl", {"text": name})
    data = texts.DataConfig(corpus=f"{tmp_path}/[ab].jsonl", prompts=f"{tmp_path}/b.jsonl")
    rl = SimpleNamespace(reward=f"{tmp_path}/reward.py:score")
    return SimpleNamespace(
        data=data, rl=rl, pretrained=str(tmp_path / "model"), tokenizer=str(tmp_path / "words")
    )


def test_a_change_of_any_byte_that_is_read_is_a_change_of_content(named, tmp_path):
    before, seen = inputs.content(named), set()
    assert inputs.content(named) == before
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        text = path.read_text()
        path.write_text(text + " ")
        changed = identity.changes_of(before, inputs.content(named))
        path.write_text(text)
        seen |= {path.relative_to(tmp_path).as_posix()} if str(path) in changed else set()
    small = {f"{x}/{y}.json" for x in ("base", "model", "words") for y in ("config", "tokenizer")}
    weights = {"base/model.safetensors", "model/model.safetensors"}
    assert seen == {"a.jsonl", "b.jsonl", "reward.py"} | small | weights


def test_a_model_of_a_hub_is_known_by_its_revision(tmp_path):
    folder = tmp_path / "snapshots" / ("0123456789" * 4)
    folder.mkdir(parents=True)
    cfg = SimpleNamespace(reference=str(folder))
    assert inputs.content(cfg) == {"reference": {"revision of the hub": folder.name}}


def pairs(chosen, rejected):
    return [
        {
            "prompt": f"is film {i} a good one",
            "chosen": f"{chosen} {i}",
            "rejected": f"{rejected} {i}",
        }
        for i in range(40)
    ]


@pytest.mark.parametrize("finished", [False, True])
def test_labels_that_were_turned_round_are_refused_before_anything_is_done(
    tmp_path, monkeypatch, finished
):
    """The same command said "this run is finished", with the old number."""
    path = rows(tmp_path / "pairs.jsonl", *pairs("good", "bad"))
    cfg = reward.Config(run=str(tmp_path / "run"), data=texts.DataConfig(comparisons=path))
    monkeypatch.setattr(reward.stages, "read_tokenizer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reward.main(cfg)
    if finished:
        disk.write_json(tmp_path / "run" / "results.json", {"x": 1})
        (tmp_path / "run" / "report.html").write_text("<html></html>")
        assert reward.main(cfg) is None
    rows(tmp_path / "pairs.jsonl", *pairs("bad", "good"))
    with pytest.raises(
        ValueError, match=r"pairs.jsonl of data.comparisons has changed .* Put back"
    ):
        reward.main(cfg)


def test_stages_are_not_taken_from_a_run_of_other_content(tmp_path):
    path = rows(tmp_path / "a.jsonl", {"text": "a"})
    cfg = settings.RunConfig(data=texts.DataConfig(corpus=path))
    run.open_run("toy", cfg, str(tmp_path / "run"), content=lambda: inputs.content(cfg))
    disk.write_json(tmp_path / "run" / "stages" / "sft" / "done.json", {"iterations": 1})
    reuse.check(tmp_path / "run", cfg, settings.RunConfig())
    rows(tmp_path / "a.jsonl", {"text": "b"})
    with pytest.raises(
        ValueError, match=r"other file contents: .*a.jsonl of data.corpus has changed"
    ):
        reuse.check(tmp_path / "run", cfg, settings.RunConfig())


@pytest.mark.parametrize(
    ("report", "results", "stands"),
    [
        ("<html></html>\n", "{}", True),
        ("", "{}", False),
        ("<html><body>", "{}", False),
        ("<html></html>", "", False),
        ("<html></html>", "[]", False),
        ("<html></html>", None, False),
        (None, "{}", False),
    ],
)
def test_a_run_is_finished_where_its_report_and_results_are_whole(
    tmp_path, report, results, stands
):
    for name, text in (("report.html", report), ("results.json", results)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert conclusion.stands(tmp_path) == stands
