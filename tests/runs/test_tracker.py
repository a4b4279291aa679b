"""Weights & Biases: what reaches the package, and, under the marker `wandb`, what the real one keeps."""

import json
import struct
import sys
import types

import pytest

from rlhf_jax.devices import hosts
from rlhf_jax.runs import metrics, run, tracker


@pytest.fixture
def folder(tmp_path):
    place = run.open_run("toy", {"lr": 0.5}, str(tmp_path / "run"))
    (place / "report.html").write_text("<html>the report</html>")
    return place


def fake(calls):
    """A package that notes what it is told."""
    told = types.SimpleNamespace(
        define_metric=lambda name, step_metric: calls.append(("define", name, step_metric)),
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish",)),
        summary=types.SimpleNamespace(update=lambda values: calls.append(("summary", values))),
    )
    return types.SimpleNamespace(
        init=lambda **settings: calls.append(("init", settings)) or told,
        Table=lambda columns, data: (columns, data),
        Html=lambda page, inject: page,
    )


def test_a_run_is_one_wandb_run_whose_stages_are_groups_and_goes_on_as_the_same(
    folder, monkeypatch
):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake(calls))
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    row = {"prompt": "p", "response": "r", "score": 1.0}
    tracker.start(folder)
    for stage in ("sft", "ppo"):
        with metrics.open_writer(folder, stage) as write:
            write(3, {"loss": 1}, [row] if stage == "ppo" else ())
    tracker.conclude(folder, {"gold": 2.0}, [row])
    (_, first), *rest = calls
    assert first["config"] == {"lr": 0.5} | {
        x: json.loads((folder / "config.json").read_text()).get(x)
        for x in ("experiment", "versions", "commit", "command")
    }
    assert (first["project"], first["group"], first["name"]) == ("rlhf_jax", "toy", "toy run")
    table = ["prompt", "response", "score"], [["p", "r", 1.0]]
    assert rest == [
        ("define", "sft/*", "sft/iteration"),
        ("log", {"sft/loss": 1.0, "sft/iteration": 3}),
        ("define", "ppo/*", "ppo/iteration"),
        ("log", {"ppo/loss": 1.0, "ppo/samples": table, "ppo/iteration": 3}),
        ("summary", {"results": {"gold": 2.0}}),
        ("log", {"samples": table, "report": "<html>the report</html>"}),
        ("finish",),
    ]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    tracker.start(folder)
    tracker.conclude(folder, {}, ())
    again = calls[len(rest) + 1][1]
    assert again["project"] == "mine" and again["id"] == first["id"]
    assert again["resume"] == "allow"


def test_only_the_first_host_opens_a_wandb_run(folder, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake(calls))
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    tracker.start(folder)
    assert not calls
    monkeypatch.setattr(hosts, "is_first", lambda: True)
    tracker.start(folder)
    assert [what for what, *_ in calls] == ["init"]
    tracker.conclude(folder, {}, ())


def test_a_run_without_a_tracker_tells_nobody(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with metrics.open_writer(folder, "ppo") as write:
        write(0, {"loss": 1})
    tracker.conclude(folder, {}, ())
    with pytest.raises(ValueError, match=r'pip install "rlhf_jax\[wandb\]"'):
        tracker.start(folder)


def records(data: bytes, block=32768, head=7):
    """The records of a W&B file: a log of LevelDB's format after an identifier of seven bytes."""
    at, whole = head, b""
    while at + head <= len(data):
        if block - at % block < head:  # no header fits the rest of a block
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + head])
        whole += data[at + head : at + head + length]
        at += head + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


@pytest.mark.wandb
def test_the_real_package_keeps_settings_metrics_tables_and_the_report_offline(folder, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    row = {"prompt": "p", "response": "r", "score": 1.0}
    for start in (0, 2):  # the second session goes on after iteration 1
        tracker.start(folder)
        with metrics.open_writer(folder, "ppo", start=start) as write:
            for i in range(start, start + 2):
                write(i, {"ppo/loss": 0.5 + i}, [row])
        if start:
            tracker.conclude(folder, {"gold": {"after": 2.0}}, [row])
        else:  # a session that is stopped ends with the process
            tracker._open.popitem()[1].finish(exit_code=75)
    wandb.teardown()  # the package's own process writes the last records after `finish` returns
    kept = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kept.append(record)
    runs = [record.run for record in kept if record.HasField("run")]
    assert {(x.project, x.run_id) for x in runs} == {("mine", runs[0].run_id)}
    settings = {x.key: json.loads(x.value_json) for x in runs[0].config.update}
    assert settings["lr"] == 0.5 and settings["experiment"] == "toy"
    history = [record.history for record in kept if record.HasField("history")]
    items = [
        {x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in one.item}
        for one in history
    ]
    loss = {x["ppo/iteration"]: x["ppo/ppo/loss"] for x in items if "ppo/ppo/loss" in x}
    assert loss == {i: 0.5 + i for i in range(4)}
    kinds = {name: x for one in items for name, x in one.items() if name.endswith("/_type")}
    tables = dict.fromkeys(["samples/_type", "ppo/samples/_type"], "table-file")
    assert kinds == {"report/_type": "html-file"} | tables
