"""The studies: seeds as one program, as processes and one by one are the same runs."""

import json
import re
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
import small_study

import launch
from experiments.studies import overoptimization
from rlhf_jax.models import networks
from rlhf_jax.studies import context as contexts
from rlhf_jax.studies import learners, matched_kl, population, proxies
from rlhf_jax.studies.context import Seed
from rlhf_jax.studies.curves import Cell
from rlhf_jax.studies.learners import Method
from rlhf_jax.studies.population import Job, Setup, nested_seeds
from rlhf_jax.studies.trees import tree_repeat

SHARED = replace(small_study.SHARED, teacher="100k", teacher_pairs=8)
RL = Method("rloo", strength=0.1, iterations=2, batch_size=8)
CELL = Cell("symbolic", "10k", 8)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return Setup(tmp_path_factory.mktemp("study"), SHARED)


def close(a, b):
    """Equal to float tolerance, whatever the nesting."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            close(a[name], b[name])
    else:
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


JOBS = {
    "proxy": Job("proxy", overoptimization.small_run, (CELL, RL)),
    "ppo": Job("ppo", overoptimization.small_run, (CELL, replace(RL, name="ppo"))),
}


@pytest.fixture(scope="module")
def alone(setup):
    """`alone(job)`: the results of two seeds, each run by itself, once for all tests."""
    return cache(lambda name: [population.work(setup, JOBS[name], [x])[0] for x in nested_seeds(2)])


@pytest.mark.parametrize("name", ["proxy", pytest.param("ppo", marks=pytest.mark.more)])
def test_all_seeds_as_one_program_are_the_single_runs(setup, alone, name):
    together = population.work(setup, JOBS[name], nested_seeds(2))
    for got, want in zip(together, alone(name), strict=True):
        close(got, want)
    assert np.abs(np.subtract(*(row["rl"]["proxy"] for row in together))).max() > 1e-3


def test_processes_are_the_single_runs_and_what_stands_is_not_computed_again(setup, alone):
    job, seeds = JOBS["proxy"], nested_seeds(2)
    found = population.run_jobs(setup, [job], seeds, "processes")["proxy"]
    for got, want in zip(found, alone("proxy"), strict=True):
        close(got, json.loads(json.dumps(want, default=np.ndarray.tolist)))
    place = setup.folder / "cells" / "proxy" / "0-0-0.json"
    place.write_text('{"stands": 1}')
    again = population.run_jobs(setup, [job], seeds, "vmap")["proxy"]
    assert again == [{"stands": 1}, found[1]]


@pytest.mark.layouts
@pytest.mark.parametrize("layout", ["mesh", "pmap", "mesh:data=2,fsdp=4"])
def test_seeds_cut_over_devices_are_those_of_one_program(setup, layout):
    seeds, job = (
        nested_seeds(3),
        JOBS["proxy"],
    )  # of eight devices: the rest gets copies of the last
    cut = population.work(setup._replace(layout=layout), job, seeds)
    want = population.work(setup, job, seeds)
    assert len(cut) == len(want) == 3
    for got, row in zip(cut, want, strict=True):
        close(got, row)


def test_no_device_waits_for_another_while_seeds_are_trained(setup):
    context = population.context_of(setup._replace(layout="mesh"))
    params = networks.reward_model(context.lms["10k"]).init(
        jax.random.key(0), context.references["10k"]
    )
    rows = jax.tree.map(lambda x: x[:8, None], (context.pool.tokens, context.pool.attention_mask))
    args = context.devices.put_batch((tree_repeat(params, 8), *rows))
    hlo = (
        contexts.make_score(context.devices.each, contexts.reward_fn(context.lms["10k"]))
        .lower(*args)
        .compile()
        .as_text()
    )
    assert not re.search("all-reduce|all-gather|all-to-all|collective-permute", hlo)


@pytest.mark.more
def test_from_comparisons_too(setup):
    context = population.context_of(setup)
    for name, strength in (("dpo", 0.1), ("sft", 1.0)):
        method, seeds = Method(name, strength=strength, batch_size=4), nested_seeds(2)
        train = lambda some, m=method: learners.from_comparisons(
            context, m, some, kind="symbolic", pairs=8
        )
        together = train(seeds).curves["loss"]
        for s, seed in enumerate(seeds):
            np.testing.assert_allclose(together[s], train([seed]).curves["loss"][0], rtol=1e-4)


def test_nested_seeds_belong_to_one_above():
    assert nested_seeds(2, 2, 1, first=3) == [
        Seed(3, 6, 6),
        Seed(3, 7, 7),
        Seed(4, 8, 8),
        Seed(4, 9, 9),
    ]
    assert len({seed.policy for seed in nested_seeds(3, 2, 4)}) == 24


def test_comparisons_of_few_pairs_are_the_first_of_many(setup):
    context, seeds = population.context_of(setup), nested_seeds(2)
    few, many = (proxies.comparisons(context, "symbolic", n, seeds) for n in (4, 8))
    np.testing.assert_array_equal(few.chosen.tokens, many.chosen.tokens[:, :4])
    assert (many.chosen.tokens[0] != many.chosen.tokens[1]).any()


def test_gold_at_a_kl_lies_between_runs_in_the_root_of_kl():
    points = [{"kl": 4.0, "gold": 2.0}, {"kl": 1.0, "gold": 1.5}]
    assert matched_kl.gold_at(points, 0.5, 0.0) == 0.5
    assert matched_kl.gold_at(points, 0.5, 2.25) == pytest.approx(1.75)
    assert np.isnan(matched_kl.gold_at(points, 0.5, 4.5))


# a command line with the shapes above, so that much is compiled once for all of them
SMALL = str.split("""--shared.policy 10k --shared.reviews 80 --shared.sft.steps 12 --shared.sft.batch-size 8
    --shared.sft.eval-every 6 --shared.reward-steps 3 --shared.reward-batch 4 --shared.pool-prompts 8
    --shared.pool-draws 8 --population vmap --seeds 2""")


def test_overoptimization_writes_its_table_and_picture(tmp_path, capsys):
    own = """overoptimization --golds symbolic --pairs 4 8 --sizes 10k --trained-against 10k
        --method.iterations 2 --method.batch-size 8"""
    command = [*own.split(), *SMALL]
    assert launch.main([*command, "--run", str(tmp_path / "run")]) == 0
    table = json.loads((tmp_path / "run" / "results.json").read_text())["over-optimization"]
    assert {row["policy"] for row in table} <= {"best of n", "RL"}
    cells = {path.name for path in (tmp_path / "run" / "cells").iterdir()}
    assert cells == {"symbolic-10k-4", "symbolic-10k-8", "symbolic-gold", "symbolic-frontier"}
    assert (tmp_path / "run" / "overoptimization.png").stat().st_size > 10_000
    assert launch.main([*command, "--run", str(tmp_path / "run")]) == 0
    assert "this run is finished" in capsys.readouterr().out


@pytest.mark.more
def test_compare_writes_gold_at_matched_kl(tmp_path):
    own = """compare --methods rloo dpo --pairs 8 --lrs 1e-3 3e-2 --iterations 2 --batch-size 8
        --kl-coefs 0.1 --betas 0.1 --tuning-seeds 2"""
    command = [*own.split(), *SMALL]
    assert launch.main([*command, "--matched", "0.001", "--run", str(tmp_path / "run")]) == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["at matched KL"]
    assert [row["method"] for row in rows] == ["RLOO", "DPO", "best of n"]
    assert rows[0]["samples"] == 16 and rows[0]["learning rate"] in (1e-3, 3e-2)
    assert (tmp_path / "run" / "compare.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["overoptimization", "--golds", "silver"], "golds"),
        (["overoptimization", "--trained-against", "1M"], 'trained_against = "1M"'),
        (["overoptimization", "--population", "swarm"], "population"),
        (["overoptimization", "--seeds", "1"], "seeds = 1"),
        (["compare", "--batch-size", "12"], "it must be a multiple of 8"),
        (
            ["compare", "--methods", "ppo", "--betas", "0.2"],
            "has no effect because methods lack dpo",
        ),
        (["overoptimization", "--method.name", "sft", "--method.strength", "1"], "draws nothing"),
        (["compare", "--devices", "mesh:tensor=2"], "a study cuts its seeds: use mesh:data=-1"),
        (["compare", "--devices", "mesh", "--population", "processes"], "use --population vmap"),
        (
            ["compare", "--devices", "mesh", "--shared.sft.batch-size", "12"],
            "shared.sft.batch_size = 12",
        ),
        (["compare", "--methods", "ppo", "magic"], "methods"),
        (["compare", "--shared.policy", "7B"], "shared.policy"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(tmp_path, capsys, settings, words):
    try:
        code = launch.main([*settings, "--run", str(tmp_path / "run")])
    except (
        SystemExit
    ) as left:  # what a config refuses is said by the command line's reader, in a box
        code = left.code
    said = " ".join(re.sub("[^ -~]", " ", capsys.readouterr().err).split())
    assert code in (1, 2) and words in said
    assert not (tmp_path / "run").exists()
