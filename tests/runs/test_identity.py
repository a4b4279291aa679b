"""The names that classes of settings give to some of their fields."""

import dataclasses

import pytest

import launch
from rlhf_jax import launcher
from rlhf_jax.runs import disk, identity

NAMES = [*launch.experiments(launch.EXPERIMENTS)]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_settings(name):
    cfg = launcher.load(name).config
    settings = identity.flat(disk.plain(cfg))
    found = identity.lengths(cfg)
    assert {*identity.incidental(cfg), *found} <= {*settings}
    assert {settings[schedule] for schedule in found.values()} <= {"constant", "linear", "cosine"}


def test_no_setting_that_changes_results_is_incidental():
    cfg = launcher.load("sentiment").config
    parts = {name.rpartition(".")[0] for name in identity.incidental(cfg)}
    assert parts == {"", "sample", "rl", "rl.scorer"}
    assert identity.incidental(cfg) == {
        *("run", "start_from", "devices", "wandb", "profile"),
        *("sample.slots", "rl.keep", "rl.best"),
        *(f"rl.scorer.{x}" for x in ("threads", "processes", "samples_per_call", "timeout")),
    }
    assert identity.lengths(cfg) == {"rl.iterations": "rl.optimizer.schedule"}


@dataclasses.dataclass(frozen=True)
class Loop:
    _incidental, _length = ("keep",), ("rounds",)

    rounds: int = 3
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class Base:
    _incidental = ("run",)

    run: str = ""
    own: Loop = Loop()


@dataclasses.dataclass(frozen=True)
class Config(Base):
    _incidental = ("pace",)

    pace: float = 1.0


def test_a_class_adds_to_what_it_inherits_at_any_depth():
    assert identity.incidental(Config()) == {"run", "pace", "own.keep"}
    assert identity.lengths(Config()) == {"own.rounds": "own.optimizer.schedule"}
    assert identity.incidental({"run": ""}) == set()
