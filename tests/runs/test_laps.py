import threading

import jax.numpy as jnp

from rlhf_jax.runs import laps


def test_phases_are_timed_one_after_another_and_nothing_waits(monkeypatch):
    """The clock of the test is at what was computed last."""
    ready, clock = threading.Event(), iter([0.0, 1.0, 1.5, 2.0, 4.0, 4.5, 7.0, 8.0, 8.5])
    now = {"time": 0.0}
    monkeypatch.setattr(laps.time, "perf_counter", lambda: now["time"])

    def wait(arrays):
        if arrays:
            assert ready.wait(10)
            now["time"] = next(clock) + 10

    monkeypatch.setattr(laps.jax, "block_until_ready", wait)
    of = laps.Laps()
    now["time"] = 2.0
    lap = of.begin()
    lap("sample", {"tokens": jnp.zeros(1)})
    lap("update", jnp.zeros(1))  # both are asked for before either is there
    ready.set()
    assert lap.metrics(tokens=22.0) == {
        "time/sample": 8.0, "time/update": 1.0, "time/tokens_per_second": 22.0 / 9.0,
    }  # fmt: skip
    now["time"] = 10.5  # the next iteration is started while the devices are at this one
    second = of.begin()
    second("score")  # on the host alone
    second("update", jnp.zeros(1))
    assert second.metrics(tokens=1.0)["time/update"] == 0.5
