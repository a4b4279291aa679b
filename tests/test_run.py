import dataclasses
import json
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import run


@dataclasses.dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    layers: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    run: str | None = None
    wandb: bool = False
    inner: Inner = Inner()


# --- the folder


def test_a_run_lives_under_its_experiment_and_the_hash_of_what_matters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = run.open_run("toy", Config())
    assert here.parent == pathlib.Path("runs/toy") and re.fullmatch("[0-9a-f]{10}", here.name)
    assert run.open_run("toy", Config(wandb=True, run="elsewhere")) == here
    others = [Config(seed=1), Config(inner=Inner(lr=1e-4)), Config(inner=Inner(layers=(1, 3)))]
    assert len({here, *(run.open_run("toy", cfg) for cfg in others)}) == 4
    assert run.open_run("other", Config()).name != here.name

    config = json.loads((here / "config.json").read_text())
    assert config["experiment"] == "toy"
    assert config["settings"]["inner"] == {"lr": 1e-3, "layers": [1, 2]}
    assert config["versions"]["jax"] == jax.__version__
    assert config["devices"] == {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1}
    assert {"command", "commit", "platform"} <= config.keys()


def test_another_config_is_refused_by_name_and_nothing_is_overwritten(tmp_path):
    place = str(tmp_path / "here")
    run.open_run("toy", Config(), place)
    before = (tmp_path / "here" / "config.json").read_bytes()
    run.open_run("toy", Config(run="another"), place)
    with pytest.raises(ValueError, match=r"\(inner.lr is 0.001 there and 0.1 here\): give another"):
        run.open_run("toy", Config(inner=Inner(lr=0.1)), place)
    with pytest.raises(ValueError, match="experiment is 'toy' there and 'sentiment' here"):
        run.open_run("sentiment", Config(), place)
    assert (tmp_path / "here" / "config.json").read_bytes() == before


def test_a_folder_that_is_no_run_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("!")
    with pytest.raises(ValueError, match=r"holds thesis.tex and no config.json"):
        run.open_run("toy", Config(), str(tmp_path))
    with pytest.raises(ValueError, match=r"thesis.tex is a file"):
        run.open_run("toy", Config(), str(tmp_path / "thesis.tex"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_settings_are_plain_values(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Odd:
        activation: object = jnp.tanh

    with pytest.raises(ValueError, match="settings and results hold plain values"):
        run.open_run("toy", Odd(), str(tmp_path / "here"))


def test_two_processes_do_not_share_a_folder(tmp_path):
    lock = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", f"{lock}; print(); sys.stdin.read()", tmp_path / ".lock"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline()
        with pytest.raises(ValueError, match="is in use by another process"):
            run.open_run("toy", Config(), str(tmp_path))
        other.kill()
    for _ in range(2):  # the dead hold no lock, and this process may open its folder again
        assert run.open_run("toy", Config(), str(tmp_path)) == tmp_path
    answer = subprocess.run(command, capture_output=True, text=True)
    assert "BlockingIOError" in answer.stderr


def test_json_is_plain_whole_and_computed_once(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return [{"a": np.float32(0.5), "b": jnp.arange(2), "c": float("nan")}, {"a": (1, None)}]

    want = [{"a": 0.5, "b": [0, 1], "c": None}, {"a": [1, None]}]
    for name in ("x.json", "x.jsonl"):
        assert run.cached(tmp_path, name, make) == run.cached(tmp_path, name, make) == want
    assert len(calls) == 2
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="plain values"):
        run.write_json(tmp_path / "x.json", {"a": object()})
    assert run.read_json(tmp_path / "x.json") == want
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.jsonl"]
    assert 0.01 < run.peak_memory() < 1000


# --- what was computed once


class Records(NamedTuple):
    a: np.ndarray
    b: dict


def records(n):
    return Records(a=np.arange(n), b={"c": np.arange(2 * n).reshape(n, 2)})


def test_arrays_are_made_once_and_read_from_disk(tmp_path):
    made = []
    make = lambda: made.append(1) or records(20)
    first = run.mapped(tmp_path / "data" / "x", make, records(1))
    again = run.mapped(tmp_path / "data" / "x", make, records(1))
    assert made == [1] and isinstance(again, Records)
    jax.tree.map(np.testing.assert_array_equal, first, records(20))
    jax.tree.map(np.testing.assert_array_equal, again, records(20))
    for x, like in zip(jax.tree.leaves(again), jax.tree.leaves(records(20)), strict=True):
        assert x.dtype == like.dtype and not x.flags.writeable and not x.flags.owndata
    assert len(run.mapped(tmp_path / "none", lambda: records(0), records(1)).a) == 0


def test_arrays_that_were_half_written_are_made_again(tmp_path):
    def fails():
        yield np.zeros(3)
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        run.mapped(tmp_path / "x", lambda: list(fails()), [0, 0])
    (tmp_path / ".x.partial").mkdir(exist_ok=True)
    (tmp_path / ".x.partial" / "0.npy").write_bytes(b"half")
    want = [np.arange(3), np.eye(2)]
    jax.tree.map(
        np.testing.assert_array_equal, run.mapped(tmp_path / "x", lambda: want, [0, 0]), want
    )
