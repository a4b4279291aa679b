import gzip
import json

import jax
import jax.numpy as jnp

from rlhf_jax.runs import loop, profiling


def train(folder, iterations=6):
    step = jax.jit(lambda x: x + 1)
    body = lambda carry, i: ({"x": step(carry["x"])}, {"toy/loss": float(i)})
    loop.iterate(folder, "toy", {"x": jnp.zeros(1)}, body, iterations=iterations, save_every=9)


def test_a_trace_holds_the_iterations_that_were_asked_for(tmp_path, capsys):
    profiling.ask(tmp_path, 3)
    train(tmp_path)
    with gzip.open(tmp_path / "profile" / "toy.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert {event["args"]["step_num"] for event in events if event.get("name") == "toy"} == {
        "2", "3", "4",
    }  # fmt: skip
    assert [*(tmp_path / "profile" / "toy").glob("*.xplane.pb")]
    assert "trace of 3 iterations" in capsys.readouterr().out


def test_nothing_is_traced_unless_asked_for_nor_where_a_stage_is_too_short(tmp_path):
    train(tmp_path / "one")
    profiling.ask(tmp_path / "two", 3)
    train(tmp_path / "two", iterations=2)
    assert not [*tmp_path.glob("*/profile")]
