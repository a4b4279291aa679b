"""The words of a sweep: which are axes, which are every run's, and which are the sweep's own."""

import itertools
from dataclasses import dataclass

import pytest
import runs
import sweep_toy

from rlhf_jax.bounds import Count, Settings
from rlhf_jax.runs import command_line
from rlhf_jax.sweeps import grid

DEFAULT = sweep_toy.config
KNOWN = [*command_line.settings(type(DEFAULT), DEFAULT)]
parse = lambda words: command_line.parse(type(DEFAULT), words, prog="toy", default=DEFAULT)


def test_settings_with_several_values_are_axes_and_lists_stay_whole():
    words = "--rl.kl_coef 0.1 -1 --words a b --seed=3 --rl.kind=ppo rloo --seeds 2 --fast on off"
    found = grid.divided(words.split(), KNOWN)
    assert found.own == ["--seeds", "2"]
    assert found.fixed == ["--words", "a", "b", "--seed=3"]
    assert found.axes == {
        "rl.kl-coef": ("0.1", "-1"), "rl.kind": ("ppo", "rloo"), "fast": ("on", "off"),
    }  # fmt: skip
    config = grid.divided(["--config", "mine.yaml", "--fast", "--no-waits"], KNOWN)
    assert config.fixed == ["--config", "mine.yaml", "--fast", "--no-waits"] and not config.axes


def test_a_methods_own_setting_goes_before_a_sweeps_of_that_name():
    @dataclass(frozen=True)
    class Study(Settings):
        seeds: Count = 3

    known = [*command_line.settings(Study, Study())]
    assert grid.divided(["--seeds", "3", "5"], known).axes == {"seeds": ("3", "5")}
    assert grid.divided(["--seeds", "3"], known) == grid.Asked([], ["--seeds", "3"], {})


def test_the_runs_are_every_combination_with_each_seed():
    asked = grid.divided(runs.parts("--rl.kl-coef 0.1 0.2 --fast on off --seed 4"), KNOWN)
    jobs = grid.jobs_of(asked, 2, KNOWN, parse)
    got = [(x.cfg.rl.kl_coef, x.cfg.fast, x.seed) for x in jobs]
    assert got == [*itertools.product((0.1, 0.2), (True, False), (4, 5))]
    # the first seed is the plain command, the others change RL alone
    assert [x.cfg.rl.seed for x in jobs[:2]] == [None, 5] and {x.cfg.seed for x in jobs} == {4}
    assert all(parse(job.words) == job.cfg for job in jobs)
    assert len({job.name for job in jobs}) == 8
    given = grid.jobs_of(grid.divided(["--rl.seed", "7"], KNOWN), 2, KNOWN, parse)
    assert [x.cfg.rl.seed for x in given] == [7, 8]


def test_without_a_seed_of_rl_the_whole_seed_varies():
    known = [x for x in KNOWN if x.name != "rl.seed"]
    jobs = grid.jobs_of(grid.divided(["--seed", "4"], known), 3, known, parse)
    assert [x.cfg.seed for x in jobs] == [4, 5, 6] == [x.seed for x in jobs]


@pytest.mark.parametrize(
    "values",
    [("a/b", "a-b"), ("x" * 200 + "1", "x" * 200 + "2"), ("../../etc", "*?[\\"), ("a b", "é")],
)
def test_any_value_makes_a_folder_of_its_own_of_plain_letters(values):
    names = [grid._plain(f"reference={value}") for value in values]
    assert names[0] != names[1]
    for name in names:
        assert len(name) <= 100 and not {*name} & {*"/\\*?[ é"} and not name.startswith(".")
