import dataclasses
import errno
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

from rlhf_jax.runs import config_file, disk, identity, manifest, run, surroundings


@dataclasses.dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    layers: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Config:
    _incidental = ("run", "wandb")

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


def older(place, *without):
    """The run at `place`, as one from before the settings `without`."""
    config = run.read_config(place)
    settings = {n: x for n, x in config["settings"].items() if n not in without}
    disk.write_json(place / "config.json", config | {"settings": settings})


def test_a_run_goes_on_where_a_setting_is_new_and_stands_at_its_default(tmp_path):
    place = tmp_path / "here"
    run.open_run("toy", Config(seed=1), str(place))
    older(place, "inner", "wandb")
    assert run.open_run("toy", Config(seed=1), str(place)) == place
    with pytest.raises(ValueError, match=r"config \(inner.lr is 0.001 there and 0.1 here\)"):
        run.open_run("toy", Config(seed=1, inner=Inner(lr=0.1)), str(place))
    # a default that has changed since is a difference, and so is a setting that is gone

    @dataclasses.dataclass(frozen=True)
    class Later(Config):
        seed: int = 5

    with pytest.raises(ValueError, match=r"\(seed is 1 there and 5 here\)"):
        run.open_run("toy", Later(), str(place))
    config = run.read_config(place)
    gone = config | {"settings": config["settings"] | {"dropout": 0.1}}
    disk.write_json(place / "config.json", gone)
    with pytest.raises(ValueError, match=r"\(dropout is 0.1 there and 'absent' here\)"):
        run.open_run("toy", Config(seed=1), str(place))
    # but not where it had no value, and so no effect
    gone["settings"]["dropout"] = None
    disk.write_json(place / "config.json", gone)
    assert run.open_run("toy", Config(seed=1), str(place)) == place


def test_a_run_goes_on_where_a_setting_that_it_knew_is_retired(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "RETIRED", ("inner.gone", "old"))
    folder = run.open_run("toy", Config(), str(tmp_path / "run"))
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["inner"]["gone"] = config["settings"]["old"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    assert run.open_run("toy", Config(), str(folder)) == folder
    assert run.read_config(folder)["settings"]["inner"] == {"lr": 1e-3, "layers": [1, 2]}
    assert "old" not in config_file.read(folder / "config.json")


def test_a_new_setting_does_not_change_the_folder_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @dataclasses.dataclass(frozen=True)
    class Later(Config):
        dropout: float = 0.0

    here = run.open_run("toy", Config(seed=1))
    assert run.open_run("toy", Later(seed=1)) == here
    assert run.open_run("toy", Later(seed=1, dropout=0.1)) != here
    # runs from before hashes were of what differs from defaults, beside others that are damaged
    (here.parent / "0000000000").mkdir()
    (here.parent / "0000000000" / "config.json").write_text("{")
    before = here.rename(here.parent / "fedcba9876")
    older(before, "inner")
    assert run.open_run("toy", Later(seed=1)) == before
    assert run.open_run("toy", Later(seed=2)) != before
    # and not one that was given a folder of its own there
    mine = before.rename(here.parent / "mine")
    assert run.open_run("toy", Later(seed=1)) not in (before, mine)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    schedule: str = "linear"


@dataclasses.dataclass(frozen=True)
class RL:
    _length = ("iterations",)

    iterations: int = 100
    optimizer: Optimizer = Optimizer()


@dataclasses.dataclass(frozen=True)
class Trained:
    seed: int = 0
    rl: RL = RL()


def test_a_run_is_lengthened_where_its_schedule_is_constant(tmp_path):
    constant = lambda n, **more: Trained(rl=RL(n, Optimizer("constant")), **more)
    begin = lambda cfg: run.open_run("toy", cfg, str(tmp_path))
    page = tmp_path / "report.html"
    begin(constant(100)), page.touch()
    begin(constant(100))
    assert page.exists()
    begin(constant(200))
    assert not page.exists()
    begin(constant(300))
    config = run.read_config(tmp_path)
    assert config["settings"]["rl"]["iterations"] == 300
    before = [entry["settings"] for entry in config["lengthened"]]
    assert before == [{"rl.iterations": 100}, {"rl.iterations": 200}]
    with pytest.raises(ValueError, match=r"config \(rl.iterations is 300 there and 200 here\)"):
        begin(constant(200))
    with pytest.raises(ValueError, match=r"config \(seed is 0 there and 1 here, rl.iterations is"):
        begin(constant(400, seed=1))
    with pytest.raises(ValueError, match=r"rl.optimizer.schedule is 'constant'"):
        begin(Trained(rl=RL(400)))
    assert run.read_config(tmp_path) == config


def test_a_run_whose_learning_rate_falls_to_zero_is_not_lengthened(tmp_path):
    run.open_run("toy", Trained(), str(tmp_path))
    (tmp_path / "report.html").touch()
    with pytest.raises(ValueError) as told:
        run.open_run("toy", Trained(rl=RL(200)), str(tmp_path))
    assert re.search(
        r"cannot be lengthened from rl.iterations = 100 to 200, for its learning rate falls to zero .*"
        r"schedule is linear.* --run NEW_FOLDER, and with --rl.optimizer.schedule constant",
        str(told.value),
    )
    assert (tmp_path / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("!")
    with pytest.raises(ValueError, match=r"holds thesis.tex and no config.json"):
        run.open_run("toy", Config(), str(tmp_path))
    with pytest.raises(ValueError, match=r"thesis.tex is a file"):
        run.open_run("toy", Config(), str(tmp_path / "thesis.tex"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gs://bucket/run", "'gs://bucket/run' is an address, and only local folders"),
        ("ppo[kl=0.1]", r"has '\[' in it, and no checkpoint can be written below such a path"),
        ("dangling", "dangling is a link that leads nowhere"),
        ("loop/run", "loop is a link that leads nowhere"),
        ("file/run", "file is a file, name a folder"),
    ],
)
def test_a_place_that_cannot_hold_a_run_is_refused_untouched(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message):
        run.open_run("toy", Config(), name)
    assert {path.name for path in tmp_path.iterdir()} == {"dangling", "loop", "file"}


def test_a_run_that_learned_from_other_content_is_refused_by_file(tmp_path, capsys):
    begun = {"data.corpus": {"a.jsonl": "1" * 64, "b.jsonl": "2" * 64}, "rl.reward": {"r.py": "3"}}
    begin = lambda content: run.open_run("toy", Config(), str(tmp_path), content=lambda: content)
    begin(begun), begin(begun)
    for corpus, message in [
        (
            {"a.jsonl": "1" * 64, "b.jsonl": "4" * 64},
            r"b.jsonl of data.corpus has changed \(sha256 222",
        ),
        ({"a.jsonl": "1" * 64}, "b.jsonl of data.corpus is gone"),
        (begun["data.corpus"] | {"c.jsonl": "5"}, "c.jsonl of data.corpus is new"),
    ]:
        with pytest.raises(
            ValueError, match=f"{message}.*Put back what it was begun with, or begin"
        ):
            begin(begun | {"data.corpus": corpus})
    with pytest.raises(ValueError, match=r"r\.py of rl.reward is gone"):
        begin({"data.corpus": begun["data.corpus"]})
    assert capsys.readouterr().err == ""
    # runs from before that go on, with a note
    config = json.loads((tmp_path / "config.json").read_text())
    disk.write_json(tmp_path / "config.json", {k: x for k, x in config.items() if k != "content"})
    begin(begun)
    assert "nothing of data.corpus, rl.reward has changed is not checked" in capsys.readouterr().err
    run.open_run("toy", Config(), str(tmp_path))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"experiment": "toy"}', '{"experiment": "toy", "settings": 3}', "\0"]
)
def test_a_damaged_config_is_told_with_a_remedy(tmp_path, text):
    run.open_run("toy", Config(), str(tmp_path))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"config.json is damaged, .*: put back a copy of it, or begin"
    ):
        run.open_run("toy", Config(), str(tmp_path))


def test_a_folder_that_nobody_may_write_can_be_read(tmp_path, monkeypatch):
    here = tmp_path / "here"
    run.open_run("toy", Config(), str(here))
    monkeypatch.setattr(run, "_locks", {})
    opened = pathlib.Path.open

    def refuse(path, *args, **kinds):
        if path.name == ".lock":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, *args, **kinds)

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    monkeypatch.setattr(run.os, "access", lambda path, mode: False)
    assert run.open_run("toy", Config(), str(here)) == here and not run._locks
    monkeypatch.setattr(run.os, "access", lambda path, mode: True)  # the lock alone is another's
    with pytest.raises(OSError, match="Read-only"):
        run.open_run("toy", Config(), str(here))


def test_a_file_system_without_locks_is_told_as_such(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run.fcntl, "lockf", no_locks)
    assert run.open_run("toy", Config(), str(tmp_path)) == tmp_path
    assert "has no locks (No locks available): take care" in capsys.readouterr().err


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
        assert disk.cached(tmp_path, name, make) == disk.cached(tmp_path, name, make) == want
    assert len(calls) == 2
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="plain values"):
        disk.write_json(tmp_path / "x.json", {"a": object()})
    assert disk.read_json(tmp_path / "x.json") == want
    made = {path.name for path in tmp_path.iterdir() if not path.name.endswith(manifest.SUFFIX)}
    assert made == {"x.json", "x.jsonl"}
    assert 0.01 < surroundings.peak_memory() < 1000


# --- what was computed once


class Records(NamedTuple):
    a: np.ndarray
    b: dict


def records(n):
    return Records(a=np.arange(n), b={"c": np.arange(2 * n).reshape(n, 2)})


def test_arrays_are_made_once_and_read_from_disk(tmp_path):
    made = []
    make = lambda: made.append(1) or records(20)
    first = disk.mapped(tmp_path / "data" / "x", make, records(1))
    again = disk.mapped(tmp_path / "data" / "x", make, records(1))
    assert made == [1] and isinstance(again, Records)
    jax.tree.map(np.testing.assert_array_equal, first, records(20))
    jax.tree.map(np.testing.assert_array_equal, again, records(20))
    for x, like in zip(jax.tree.leaves(again), jax.tree.leaves(records(20)), strict=True):
        assert x.dtype == like.dtype and not x.flags.writeable and not x.flags.owndata
    assert len(disk.mapped(tmp_path / "none", lambda: records(0), records(1)).a) == 0


def test_arrays_of_an_older_record_with_fewer_fields_are_made_again(tmp_path, capsys):
    place = tmp_path / "x"
    disk.mapped(place, lambda: records(20).b, {"c": 0})
    found = disk.mapped(place, lambda: records(20), records(1))
    jax.tree.map(np.testing.assert_array_equal, found, records(20))
    again = disk.mapped(place, lambda: pytest.fail("made once more"), records(1))
    jax.tree.map(np.testing.assert_array_equal, again, records(20))
    assert capsys.readouterr().err == ""


def test_arrays_that_were_half_written_are_made_again(tmp_path):
    def fails():
        yield np.zeros(3)
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        disk.mapped(tmp_path / "x", lambda: list(fails()), [0, 0])
    assert (tmp_path / ".partial.x").is_dir() and not (tmp_path / "x").exists()
    (tmp_path / ".partial.x" / "0.npy").write_bytes(b"half")
    want = [np.arange(3), np.eye(2)]
    jax.tree.map(
        np.testing.assert_array_equal, disk.mapped(tmp_path / "x", lambda: want, [0, 0]), want
    )


@pytest.mark.parametrize("what", ["array", "manifest", "missing", "rows"])
def test_what_was_computed_once_is_made_again_where_it_is_damaged(tmp_path, capsys, what):
    want = [{"text": "good"}, {"text": "bad"}]
    arrays = lambda: disk.mapped(tmp_path / "x", lambda: records(20), records(1))
    rows = lambda: disk.cached(tmp_path, "x.jsonl", lambda: want)
    arrays(), rows()
    if what == "array":
        (tmp_path / "x" / "1.npy").write_bytes((tmp_path / "x" / "1.npy").read_bytes()[:-1] + b"!")
    elif what == "missing":
        (tmp_path / "x" / "0.npy").unlink()
    elif what == "manifest":
        (tmp_path / "x.manifest.json").write_text("{}")
    else:
        (tmp_path / "x.jsonl").write_text('{"text": "good"}\n{"text": "sad"}\n')
    jax.tree.map(np.testing.assert_array_equal, arrays(), records(20))
    assert rows() == want
    assert "is damaged: " in (told := capsys.readouterr().err) and told.count("made again") == 1
    arrays(), rows()
    assert capsys.readouterr().err == ""


def test_what_is_made_again_must_be_what_it_was(tmp_path):
    make = lambda text: lambda: disk.kept(tmp_path / "x", lambda path: path.write_text(text))
    make("good")(), make("other")()  # it stands, and is not made again
    assert (tmp_path / "x").read_text() == "good"
    (tmp_path / "x").write_text("gone")
    with pytest.raises(
        ValueError, match="x is damaged, and what is made in its place is not what it was"
    ):
        make("other")()
    make("good")()
    assert (tmp_path / "x").read_text() == "good"
    # what an older version left without a manifest stands, and has one from then on
    (tmp_path / "x.manifest.json").unlink()
    make("other")()
    assert (tmp_path / "x").read_text() == "good" and (tmp_path / "x.manifest.json").exists()
