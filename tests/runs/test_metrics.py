import json
import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.runs import metrics


def names(path):
    return [(row["stage"], row["iteration"]) for row in metrics.read(path)]


def test_rows_are_valid_json_whatever_the_numbers(tmp_path):
    with metrics.open_writer(tmp_path, "ppo") as write:
        write(0, {"ppo/loss": jnp.float32(0.5), "ppo/nan": np.nan, "ppo/inf": jnp.float32(-np.inf)})
        write(1, {"ppo/loss": np.array([0.25])})
        path = tmp_path / "metrics.jsonl"
        assert len(path.read_text().splitlines()) == 2  # flushed at once
    refuse = lambda name: pytest.fail(f"{name} is no JSON")
    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert rows[0]["ppo/nan"] is None and rows[0]["ppo/inf"] is None
    assert {"stage": "ppo", "iteration": 1, "ppo/loss": 0.25}.items() <= rows[1].items()
    first = metrics.read(path)[0]
    assert first["ppo/loss"] == 0.5 and math.isnan(first["ppo/nan"])


def test_resuming_cuts_this_stage_from_the_checkpoint_on(tmp_path):
    for stage in ("sft", "ppo"):
        with metrics.open_writer(tmp_path, stage) as write:
            for i in range(4):
                write(i, {f"{stage}/loss": i})
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"stage": "ppo", "iterat')  # killed in the middle of a write
    assert len(names(path)) == 8
    with metrics.open_writer(tmp_path, "ppo", start=2) as write:
        assert names(path) == [("sft", i) for i in range(4)] + [("ppo", 0), ("ppo", 1)]
        write(2, {"ppo/loss": 9})
    assert metrics.read(path)[-1]["ppo/loss"] == 9
    assert path.read_text().endswith("}\n")
    assert len(list((tmp_path / "tensorboard" / "ppo").iterdir())) == 2


def test_a_broken_line_inside_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "iteration": 0}\nbroken\n{"stage": "a", "iteration": 1}\n')
    for line in (b"broken", b"\xff", b"[1]", b'{"stage": "a"}'):
        path.write_bytes(path.read_bytes().replace(path.read_bytes().splitlines()[1], line))
        with pytest.raises(
            ValueError, match=r"metrics.jsonl:2: this line is no row of metrics: rem"
        ):
            metrics.cut(path, "a", 0)


def test_a_metric_is_one_number(tmp_path):
    refused = pytest.raises(ValueError, match=r"metric x has shape \[3\]")
    with metrics.open_writer(tmp_path, "a") as write, refused:
        write(0, {"x": jnp.zeros(3)})
    assert metrics.read(tmp_path / "metrics.jsonl") == []


def test_wandb_is_asked_for_by_name_and_only_with_the_flag(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with metrics.open_writer(tmp_path, "a") as write:
        write(0, {"x": 1})
    refused = pytest.raises(ValueError, match=r'pip install "rlhf_jax\[wandb\]"')
    with refused, metrics.open_writer(tmp_path, "a", wandb=True):
        pass

    calls = []
    log = lambda values, step: calls.append((values, step))
    tracker = types.SimpleNamespace(log=log, finish=lambda: calls.append("finished"))
    init = lambda **settings: calls.append(settings["id"]) or tracker
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        with metrics.open_writer(tmp_path, "a", wandb=True) as write:
            write(3, {"x": 1})
    assert calls[1:3] == [({"x": 1.0}, 3), "finished"] and calls[3] == calls[0]
