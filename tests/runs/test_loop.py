import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.runs import checkpoint, disk, loop, metrics, run


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0


def start():
    return {"x": jnp.zeros(5), "host": np.zeros(3), "best": jnp.asarray(0.5)}  # the last is weak


@jax.jit
def step(carry, key):
    x = 0.9 * carry["x"] + jax.random.normal(key, (5,))
    return x, jnp.minimum(carry["best"], jnp.mean(x))


def body(carry, i):
    assert not carry["best"].weak_type  # a restored one is not, so a fresh one must not be
    x, best = step(carry, jax.random.fold_in(jax.random.key(0), i))
    host = carry["host"] + np.random.default_rng(i).normal(size=3)
    return {"x": x, "host": host, "best": best}, {"toy/mean": jnp.mean(x), "toy/host": host[0]}


def never(carry, i):
    raise AssertionError("this stage was to be finished")


def dying_at(when):
    def dying(carry, i):
        if i == when:
            raise KeyboardInterrupt
        return body(carry, i)

    return dying


def assert_same_bits(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert type(a) is type(b) and a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def rows(place):
    return [
        {k: v for k, v in row.items() if k != "time"}
        for row in metrics.read(place / "metrics.jsonl")
    ]


def test_a_killed_stage_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
    whole = lambda place, body: loop.iterate(
        place, "toy", start(), body, iterations=11, save_every=4
    )
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    want = whole(tmp_path / "a", body)
    for when in (2, 6, 10):
        with pytest.raises(KeyboardInterrupt):
            whole(tmp_path / "b", dying_at(when))
        assert not run.finished(tmp_path / "b", "toy")
    assert_same_bits(whole(tmp_path / "b", body), want)
    assert run.finished(tmp_path / "b", "toy")
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert [row["iteration"] for row in rows(tmp_path / "b")] == list(range(11))

    # a finished stage is read
    assert_same_bits(whole(tmp_path / "b", never), want)
    done = json.loads((tmp_path / "b" / "stages" / "toy" / "done.json").read_text())
    assert done["iterations"] == 11 and done["seconds"] > 0

    # and done again from the checkpoint before, where its last one is damaged
    for path in (tmp_path / "b" / "stages" / "toy" / "11").rglob("manifest.ocdbt"):
        path.unlink()
    assert_same_bits(whole(tmp_path / "b", body), want)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_a_lengthened_stage_ends_with_the_bits_of_one_of_that_length(tmp_path):
    whole = lambda name, body, n: loop.iterate(
        tmp_path / name, "toy", start(), body, iterations=n, save_every=4
    )
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    want = whole("a", body, 15)
    whole("b", body, 6)
    with pytest.raises(KeyboardInterrupt):
        whole("b", dying_at(9), 15)
    assert not run.finished(tmp_path / "b", "toy")
    assert_same_bits(whole("b", body, 15), want)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert disk.read_json(tmp_path / "b" / "stages" / "toy" / "done.json")["iterations"] == 15
    assert_same_bits(whole("b", never, 15), want)


def test_two_stages_keep_their_own_rows_and_checkpoints(tmp_path):
    for stage in ("one", "two"):
        loop.iterate(tmp_path, stage, start(), body, iterations=3, save_every=1, log_every=2)
    assert [(r["stage"], r["iteration"]) for r in rows(tmp_path)] == [
        ("one", 1), ("one", 2), ("two", 1), ("two", 2),
    ]  # fmt: skip
    steps = {p.name for p in (tmp_path / "stages" / "two").iterdir() if p.is_dir()}
    assert steps == {"2", "3"}


def test_the_best_checkpoint_stays_and_is_the_same_after_a_kill(tmp_path):
    """Means since the save before of 0, 1, 2, 9, 8, 7, 3, ... two at a time: 8.5 is highest, at 6."""
    quality = [0, 1, 2, 3, 9, 8, 7, 9.5, 3, 1, float("nan"), 4]
    rated = lambda carry, i: ({"x": carry["x"] + 1}, {"toy/quality": jnp.float32(quality[i])})
    whole = lambda place, body: loop.iterate(
        place, "toy", {"x": jnp.int32(0)}, body, iterations=12, save_every=2, best="toy/quality"
    )

    def dying(carry, i):
        if i == 5:
            raise KeyboardInterrupt
        return rated(carry, i)

    for name, bodies in {"alone": [rated], "killed": [dying, rated]}.items():
        (tmp_path / name).mkdir()
        for body in bodies:
            with contextlib.suppress(KeyboardInterrupt):
                whole(tmp_path / name, body)
        place = tmp_path / name / "stages" / "toy"
        assert checkpoint.best(place) == 6
        assert {p.name for p in place.iterdir() if p.is_dir()} == {"6", "10", "12"}
        assert checkpoint.read(place, 6)["['x']"] == 6
    with pytest.raises(ValueError, match=r'best = "toy/gold" .* toy: use one of toy/quality'):
        loop.iterate(
            tmp_path, "toy", {"x": jnp.int32(0)}, rated, iterations=2, save_every=2, best="toy/gold"
        )


def test_until_stops_at_the_same_place_after_a_kill(tmp_path):
    asked = []

    def until(carry):
        asked.append(int(carry["i"]))
        return carry["i"] >= 6

    def count(carry, i):
        if i == dies:
            raise KeyboardInterrupt
        return {"i": carry["i"] + 1}, {"toy/i": carry["i"]}

    zero = {"i": jnp.int32(0)}
    whole = lambda: loop.iterate(
        tmp_path, "toy", zero, count, iterations=100, save_every=2, until=until
    )
    dies = 4
    with pytest.raises(KeyboardInterrupt):
        whole()
    dies = None
    assert whole() == {"i": 6} and asked == [2, 4, 4, 6]
    assert whole() == {"i": 6} and run.finished(tmp_path, "toy")
    assert asked == [2, 4, 4, 6]  # it had ended early, and is not asked again
    assert checkpoint.latest(tmp_path / "stages" / "toy") == 6


def test_a_stage_whose_steps_are_all_skipped_stops_and_the_same_command_stops_there_again(tmp_path):
    calls = []

    def lost_from(when, steps, norm=np.nan):
        def lost(carry, i):
            calls.append(i)
            bad = i >= when
            found = {
                "train/skipped": jnp.float32(steps if bad else steps - 1),
                "toy/loss": np.float32(i),
            }
            found |= {"train/grad_norm": jnp.float32(norm if bad else 1.0)}
            found |= {"toy/steps": jnp.float32(steps)} if steps > 1 else {}
            return {"i": carry["i"] + (not bad)}, found

        return lost

    def train(name, body, iterations, **kinds):
        calls.clear()
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        kinds = {"save_every": 4, "log_every": 5} | kinds
        return loop.iterate(place, "toy", {"i": np.int64(0)}, body, iterations=iterations, **kinds)

    nothing = (
        r"stage toy learns nothing: train/skipped counted every step of the last {} iterations, "
    )
    for steps in (1, 8):
        name = f"long {steps}"
        for first in (0, 8):  # the last save while it learned
            with pytest.raises(ValueError, match=nothing.format(20)):
                train(name, lost_from(10, steps), 100)
            assert calls == list(range(first, 31))  # one was started before that was known
        assert checkpoint.latest(tmp_path / name / "stages" / "toy") == 8
        assert rows(tmp_path / name)[-1]["iteration"] == 29
    # a stage that is shorter, however often it is started, and one that ends early
    for _ in range(2):
        with pytest.raises(ValueError, match=nothing.format(7)):
            train("short", lost_from(0, 1), 7)
        with pytest.raises(ValueError, match=nothing.format(8)):
            train("early", lost_from(0, 1), 19, until=lambda carry: len(calls) >= 8)
        assert not run.finished(tmp_path / "short", "toy")
    # a few lost steps are none, at the end neither; nor are batches without a weight, which are told
    assert train("few", lost_from(81, 1), 100, save_every=90)["i"] == 81
    assert train("few", never, 100)["i"] == 81
    assert train("no weight", lost_from(0, 1, norm=0.0), 40, save_every=90)["i"] == 0


def test_metrics_are_waited_for_when_the_next_iteration_is_under_way(tmp_path):
    """But not those of the first iteration, and those before a save, which it may depend on."""
    said = []

    def body(carry, i):
        said.append(f"start {i}")

        def later():
            said.append(f"wait {i}")
            return {"toy/late": i}

        return carry, {"toy/loss": float(i), loop.LATER: later}

    loop.iterate(tmp_path, "toy", {"x": np.zeros(1)}, body, iterations=6, save_every=4)
    whole = " ".join(said).replace("start ", "s").replace("wait ", "w")
    assert whole == "s0 w0 s1 s2 w1 s3 w2 w3 s4 s5 w4 w5"
    assert [row["toy/late"] for row in rows(tmp_path)] == [*range(6)]


def test_metrics_that_are_not_yet_written_are_kept_where_the_next_iteration_fails(tmp_path):
    def body(carry, i):
        if i == 3:
            raise RuntimeError("it broke")
        return carry, {"toy/loss": float(i), loop.LATER: lambda: {"toy/late": i}}

    with pytest.raises(RuntimeError, match="it broke"):
        loop.iterate(tmp_path, "toy", {"x": np.zeros(1)}, body, iterations=9, save_every=9)
    assert [row["toy/late"] for row in rows(tmp_path)] == [0, 1, 2]


def test_a_batch_without_weights_is_told(tmp_path, capsys):
    idle = lambda carry, i: (carry, {"train/skipped": 1.0, "train/grad_norm": 0.0})
    loop.iterate(tmp_path, "toy", {"x": np.zeros(1)}, idle, iterations=3, save_every=2)
    assert "note: toy took no step" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"seconds": "soon"}', "\0"])
def test_a_damaged_clock_or_end_is_told_and_made_again(tmp_path, capsys, text):
    whole = lambda body: loop.iterate(tmp_path, "toy", start(), body, iterations=3, save_every=2)
    want, stage = whole(body), tmp_path / "stages" / "toy"
    for name in ("clock.json", "done.json"):
        (stage / name).write_text(text)
        assert_same_bits(whole(never), want)
        assert f"{stage / name} is damaged" in capsys.readouterr().err
    assert disk.read_json(stage / "done.json")["iterations"] == 3
    (stage / "3.manifest.json").unlink()
    assert_same_bits(whole(body), want)
    assert "toy was finished, and its last checkpoint is gone" in capsys.readouterr().err


def test_sigterm_ends_the_iteration_saves_and_exits_75(tmp_path):
    def told(carry, i):
        if i == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return body(carry, i)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        loop.iterate(tmp_path, "toy", start(), told, iterations=9, save_every=100)
    assert stopped.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.latest(tmp_path / "stages" / "toy") == 3
    got = loop.iterate(tmp_path, "toy", start(), body, iterations=9, save_every=100)
    (tmp_path / "whole").mkdir()
    assert_same_bits(
        got, loop.iterate(tmp_path / "whole", "toy", start(), body, iterations=9, save_every=100)
    )


def test_sigkill_in_another_process(tmp_path):
    program = textwrap.dedent(f"""
        import os, pathlib, signal, sys, time
        here = pathlib.Path({__file__!r}).parent
        sys.path[:0] = [str(here), str(here.parent), {str(pathlib.Path.cwd())!r}]
        import conftest, test_loop
        from rlhf_jax.runs import checkpoint, loop, run

        def body(carry, i):
            if i == 5:
                while checkpoint.latest(place / "stages" / "toy") != 4:  # it is on its way
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return test_loop.body(carry, i)

        place = run.open_run("toy", test_loop.Config(), sys.argv[1])
        loop.iterate(place, "toy", test_loop.start(), body, iterations=7, save_every=2)
    """)
    command = [sys.executable, "-c", program, str(tmp_path / "killed")]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    place = run.open_run("toy", Config(), str(tmp_path / "killed"))  # the dead hold no lock
    assert checkpoint.latest(place / "stages" / "toy") == 4
    whole = lambda place: loop.iterate(place, "toy", start(), body, iterations=7, save_every=2)
    assert_same_bits(whole(place), whole(run.open_run("toy", Config(), str(tmp_path / "whole"))))
    assert rows(place) == rows(tmp_path / "whole")


def test_a_body_that_changes_the_kind_of_its_carry_is_refused_at_once(tmp_path):
    for first, after, message in [
        (
            {"x": jnp.int32(0)},
            {"x": jnp.float32(0)},
            r"carry\['x'\] .* JAX int32\[\] .* JAX float32\[\]",
        ),
        (
            {"x": np.zeros(2)},
            {"x": np.zeros(3)},
            r"NumPy float64\[2\] and came out as NumPy float64\[3\]",
        ),
        ({"x": 0}, {"y": 0}, r"carry\['x'\] .* plain int and came out as nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            loop.iterate(
                tmp_path,
                "a",
                first,
                lambda c, i, after=after: (after, {}),
                iterations=2,
                save_every=1,
            )
    with pytest.raises(ValueError, match="save_every is 0"):
        loop.iterate(tmp_path, "a", start(), body, iterations=2, save_every=0)


def test_progress_without_a_terminal_is_a_few_plain_lines(tmp_path, capsys):
    loop.iterate(tmp_path, "toy", start(), body, iterations=40, save_every=40, unit="steps")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert re.fullmatch(r"toy: 40/40  .* steps/s  0:00 left  host \S+  mean \S+", lines[-2])
    assert re.fullmatch(r"toy: 40 steps in \d+:\d\d", lines[-1])
    loop.iterate(tmp_path, "toy", start(), body, iterations=40, save_every=40, unit="steps")
    assert capsys.readouterr().out.startswith("toy: finished before, 40 steps in 0:0")
