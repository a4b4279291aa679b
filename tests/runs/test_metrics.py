import json
import math

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


def test_samples_are_rows_of_their_own_file_and_are_cut_as_the_metrics_are(tmp_path):
    row = {"prompt": "half \ud83d", "response": "a|b\nc", "score": 0.5}
    with metrics.open_writer(tmp_path, "ppo") as write:
        write(0, {"x": 1}, [row])
        write(5, {}, [row, row])  # an iteration whose metrics are not logged
    with metrics.open_writer(tmp_path, "ppo", start=5):
        pass
    kept = [json.loads(x) for x in (tmp_path / metrics.SAMPLES).read_text().splitlines()]
    assert kept == [{"stage": "ppo", "iteration": 0} | row | {"prompt": "half \\ud83d"}]
    assert names(tmp_path / "metrics.jsonl") == [("ppo", 0)]
    board = b"".join(x.read_bytes() for x in (tmp_path / "tensorboard" / "ppo").iterdir())
    assert b"| half \\ud83d | a\\|b<br>c | 0.5 |" in board
