"""A task and an algorithm that the library has never seen: one file each, and nothing else is edited."""

import json
import textwrap

import numpy as np
import pytest

import launch
from rlhf_jax.pipeline import texts
from rlhf_jax.runs import metrics

SMALL = str.split(
    """--devices device --model.d-model 16 --model.layers 1 --model.heads 2 --data.vocab-size 300
    --data.held-out 0.2 --data.demonstrations 64 --sft.steps 4 --sft.batch-size 8 --sft.eval-every 4
    --rl.iterations 2 --rl.batch-size 8 --eval-draws 1 --rl.optimizer.schedule constant"""
)

TASK = '''
"""Counting: the response repeats a letter as often as the row's column says."""
import numpy as np
from rlhf_jax.tasks.task import Task

ROWS = [{"prompt": f"{n} {x}", "times": n, "letter": x} for n in range(1, 6) for x in "abcd"]

def prompts(share, seed):
    order = np.random.default_rng(seed).permutation(len(ROWS))
    cut = round(share * len(ROWS))
    return [ROWS[i] for i in order[cut:]], [ROWS[i] for i in order[:cut]]

def corpus(seed, n, rows):
    drawn = np.random.default_rng(seed).integers(0, len(rows), n)
    return [(rows[i]["prompt"], " ".join([rows[i]["letter"]] * rows[i]["times"])) for i in drawn]

def gold(rows, responses):
    off = [abs(said.split().count(row["letter"]) - row["times"]) for row, said in zip(rows, responses)]
    return -np.array(off, np.float32)

def words(rows, responses):
    return np.array([len(said.split()) for said in responses], np.float32)

def best(rows):
    return [" ".join([row["letter"]] * row["times"]) for row in rows]

DEFAULTS = {"data.prompt_length": 6, "sample.length": 7}
TASK = Task(prompts, corpus, gold, metrics={"words": words}, defaults=DEFAULTS, best=best)
'''

REWARD = """
def counted(prompts, responses, times, letter):
    return [-float(abs(r.split().count(x) - n)) for r, n, x in zip(responses, times, letter)]
"""

ALGORITHM = '''
"""A method of one's own: the likelihood of responses, weighed by their rewards."""
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from rlhf_jax import optimizer, train_step
from rlhf_jax.algorithms import rollout
from rlhf_jax.algorithms.learner import Learner, policy_alone
from rlhf_jax.pipeline import learners, on_policy, people, results, stages
from rlhf_jax.pipeline.rl_settings import OnPolicyConfig
from rlhf_jax.pipeline.prepare import prepare

def weights_of(batch):
    return jnp.ones(len(batch.samples.mask))

def loss(params, frozen, batch, weights, *, policy_fn):
    samples = batch.samples
    T = samples.mask.shape[1]
    logprobs, _ = policy_fn(params, samples.tokens, samples.attention_mask, last=T)
    said = jnp.sum(jnp.where(samples.mask, logprobs, 0.0), axis=1)
    total = -jnp.vdot(weights, said * jnp.sum(batch.rewards, axis=1))
    return total, {"weighed/loss": total}

def make_learner(policy_fn, tx, rollout_cfg, axis_name):
    weighed = partial(loss, policy_fn=policy_fn)
    step = train_step.make_train_step(weighed, weights_of, tx, axis_name=axis_name)
    def update(state, frozen, kl_coef, rolled, rng):
        state, metrics = step(state, frozen, rolled)
        return state, metrics | rollout.objective_metrics(
            rolled, rolled.rewards, kl_coef, axis_name=axis_name)
    annotate = rollout.make_annotate(policy_fn, rollout_cfg)
    return Learner("weighed", policy_alone, lambda params: params, annotate, update, group=1)

@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """Settings of the method."""

config = Config()

def main(cfg):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("weighed", cfg, {"rl.batch_size": cfg.rl.batch_size})
    if run is None:
        return
    cfg = run.cfg
    reference, facts = stages.reference(run)
    reward, held_out = stages.reward_models(run, reference, people.compare(run, reference))
    tx = optimizer.make(cfg.rl.optimizer, cfg.rl.iterations)  # one step in each
    make = lambda fn: make_learner(fn, tx, cfg.rollout, run.devices.axis_name)
    policy_fn = run.lm.at(cfg.sample.temperature).policy_fn
    method = learners.on_devices(run, "weighed", make, policy_fn, tx, reference)
    params, _ = on_policy.train(run, method, reference, reward, held_out)
    results.conclude(run, "mine", reference, results.respond(run, params), results.Judges(reward, held_out),
                     facts=facts)
'''


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run of the planted algorithm on the planted task, by a Python reward that reads its columns."""
    folder = tmp_path_factory.mktemp("planted")
    for name, text in (("counting", TASK), ("counted", REWARD), ("weighed", ALGORITHM)):
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    command = [str(folder / "weighed.py"), *SMALL, "--task", str(folder / "counting.py")]
    command += ["--rl.reward", f"{folder}/counted.py:counted", "--run", str(folder / "run")]
    assert launch.main(command) == 0
    return folder / "run"


def test_a_planted_algorithm_learns_a_planted_task(planted):
    rows = metrics.read(planted / "metrics.jsonl")
    own = [row for row in rows if row["stage"] == "weighed"]
    assert len(own) == 2 and all(np.isfinite(row["weighed/loss"]) for row in own)
    assert {"sft", "weighed"} == {row["stage"] for row in rows}  # nothing else is asked for
    for row in own:  # gold and the reward are one function, and the columns reached both
        assert row["score/counted"] == pytest.approx(row["objective/gold"])
    page = (planted / "report.html").read_text()
    assert "Curves: weighed" in page and "<code>weighed/loss</code>" in page
    results = json.loads((planted / "results.json").read_text())
    assert list(results)[:3] == ["Python reward", "gold", "words"]
    assert results["Python reward"] == results["gold"]
    assert results["gold of the best responses"] == 0.0


def test_what_was_used_is_recorded(planted):
    config = json.loads((planted / "config.json").read_text())
    used = config["used"]
    assert used["data"]["prompt_length"] == 6 and used["sample"]["length"] == 7
    assert used["model"]["vocab_size"] > 256 and used["sample"]["stop"]


def test_a_task_that_is_none_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("TASK = 3\n")
    (tmp_path / "broken.py").write_text("import nowhere\n")
    assert "reviews" in texts.task_names()
    for name, said in (
        ("revews", "is not known: use .*reviews"),
        (f"{tmp_path}/gone.py", "is no file"),
        (f"{tmp_path}/empty.py", "defines no TASK"),
        (f"{tmp_path}/broken.py", "fails with ModuleNotFoundError"),
    ):
        with pytest.raises(ValueError, match=said):
            texts.load_task(name)
