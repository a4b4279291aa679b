"""A plan says what the run then holds, compiles and counts; it starts and writes nothing."""

import gc
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from runs import parts
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import launch
from rlhf_jax.devices import dry_run, memory, timing
from rlhf_jax.pipeline import plan, plan_table
from rlhf_jax.runs import command_line, loop, metrics

MESH = parts("--devices mesh:data=2,fsdp=4")
LOOP = " ".join(runs.LOOP).replace("--rl.batch-size 8", "--rl.batch-size 16")
TINY = [*parts(LOOP), *runs.SFT, *runs.STAGES[2:], *runs.SHAPE, *runs.WORLD]
PPO = [*TINY, *runs.PPO, *parts("--ppo.kl-stop 0 --rl.value-from reward")]


def planned(name: str, settings: list[str], timed: bool = False):
    """The dry run of a command, and why it stopped."""
    found = launch.load(name)
    cfg = command_line.parse(type(found.config), settings, prog="", default=found.config)
    return plan.rehearse(found.main, cfg, timed=timed)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(dry run, run directory, {program: (planned call, (held, more))}, {stage: bytes}) of PPO."""
    folder, said, states = tmp_path_factory.mktemp("plan") / "run", {}, {}
    gc.collect()
    before = memory.held()  # by tests of this process that came earlier
    iterate = loop.iterate

    def watching(run, stage, carry, *rest, **more):
        states[stage] = sum(
            memory.share(x, x.sharding) for x in jax.tree.leaves(carry) if isinstance(x, jax.Array)
        )
        return iterate(run, stage, carry, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            memory,
            "print_estimate",
            lambda name, held, more, *_: said.update({name: (held - before, more)}),
        )
        patch.setattr(loop, "iterate", watching)
        assert launch.main(["ppo", *PPO, *MESH, "--run", str(folder)]) == 0
    first, note = {}, dry_run.DryRun.called

    def noting(self, call):
        first.setdefault(call.name, call)
        note(self, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run.DryRun, "called", noting)
        dry, stopped = planned("ppo", [*PPO, *MESH])
    assert not stopped
    announced = {name: (call, said[name]) for name, call in first.items() if name in said}
    assert announced.keys() == said.keys()
    return dry, folder, announced, states


@pytest.mark.parametrize("program", ["sft", "reward", "held_out_reward", "rollout", "update"])
def test_memory_is_that_which_the_run_announces(both, program):
    call, (held, more) = both[2][program]
    assert call.more == more
    assert abs(sum(call.held.values()) - held) < 2000 < held / 8  # scalars, and keys


def test_a_state_has_the_bytes_of_the_real_one_on_a_device(both):
    dry, _, _, states = both
    of_state = dry_run.TRAINED, dry_run.CRITIC, dry_run.OPTIMIZER
    for stage in dry.loops:
        held = sum(stage.held[kind] for kind in of_state)
        held += stage.held[dry_run.FROZEN] * (stage.stage == "sft")  # the best parameters
        assert 0 <= states[stage.stage] - held < 50, stage.stage  # scalars
    held = sum(dry.loops[-1].held[kind] for kind in of_state)
    assert f" {memory.size(held)} per device" in "".join(plan_table.ahead(dry.prepared))


def test_parameters_are_counted(both):
    dry, folder, _, _ = both
    for stage, within in [("reward", ".params"), ("ppo", "['state'].params")]:
        found = [
            x.size for path, x in runs.arrays(folder, stage).items() if path.startswith(within)
        ]
        assert next(x for x in dry.loops if x.stage == stage).trained == sum(found)


def test_steps_and_responses_are_those_of_the_metrics(both):
    dry, folder, _, _ = both
    rows = list(metrics.read(folder / "metrics.jsonl"))
    of = lambda stage: [row for row in rows if row["stage"] == stage]
    for stage in dry.loops:
        batch, steps, _ = plan_table.trained(dry.prepared.cfg, stage, dry)
        assert batch == (16 if stage.stage == "ppo" else 8)
        if stage.stage == "ppo":
            assert sum(row["ppo/steps"] for row in of("ppo")) == steps == 5 * 2 * 2
            assert len(of("ppo")) == stage.iterations
        else:
            assert of(stage.stage)[-1]["iteration"] + 1 == steps
    asked = [json.loads(x) for x in (folder / "comparisons.jsonl").read_text().splitlines()]
    said = [json.loads(x) for x in (folder / "samples.jsonl").read_text().splitlines()]
    assert dry.drawn == {"comparisons": 2 * len(asked), "results": 2 * len(said)}


def test_stages_of_another_run_are_not_planned_again(both, monkeypatch):
    monkeypatch.setattr(memory, "taken", lambda lowered: 1)
    dry, stopped = planned("ppo", [*PPO, *MESH, "--start-from", str(both[1])])
    assert not stopped
    assert {x.stage: x.copied for x in dry.loops} == {
        "sft": True, "reward": True, "held_out_reward": True, "ppo": False,
    }  # fmt: skip
    assert not dry.drawn["comparisons"]
    assert "\n".join(plan_table.written("ppo", dry)).count("copied") == 3


def test_the_time_of_a_stage_is_that_of_all_its_iterations(monkeypatch):
    """Where each call takes a second, some iterations evaluate, and the stages do not end early."""
    monkeypatch.setattr(memory, "taken", lambda lowered: 1)
    monkeypatch.setattr(timing, "seconds_of", lambda *_: 1.0)

    def rehearsed():
        dry, stopped = planned("ppo", [*PPO, "--rl.eval-every", "2"], timed=True)
        assert not stopped
        return dry

    dry = rehearsed()
    monkeypatch.setattr(dry_run.DryRun, "tried", lambda self, iterations: range(iterations))
    every = rehearsed()
    for loop_, whole in zip(dry.loops, every.loops, strict=True):
        assert len(loop_.costs) <= 3 and len(whole.costs) == loop_.iterations >= 5
        assert plan_table.seconds(dry.prepared.cfg, loop_) == sum(whole.costs), loop_.stage
    assert len({*every.loops[-1].costs}) == 2
    between = dry.spent - sum(sum(x.costs) for x in dry.loops)
    said = "\n".join(plan_table.written("ppo", dry, took=60.0))
    whole = loop.duration(every.spent + 60.0 - dry.trying - dry.compiling)
    assert f"time: {whole} at most, of it {loop.duration(between)} between the stages" in said
    dry.untimed.add("update")
    assert "no time is said: a call of update would" in "\n".join(plan_table.written("ppo", dry))


def test_a_program_is_timed_on_arrays_that_it_accepts(monkeypatch):
    calls = []

    def step(state, key, rows):
        jax.debug.callback(lambda *x: calls.append(x), state, *rows)
        return state + 1, jax.random.uniform(key)

    of = jax.ShapeDtypeStruct
    args = (
        of((3,), jnp.float32),
        jax.eval_shape(jax.random.key, 0),
        (of((), bool), of((2,), jnp.int32)),
    )
    lowered = jax.jit(step, donate_argnums=0).lower(*args)
    monkeypatch.setattr(timing, "MOST", 4)
    assert 0 < timing.seconds_of(lowered, args, 1.0, True) < 60
    jax.effects_barrier()
    first = [np.asarray(state) for state, _, _ in calls]
    assert len(first) == 6 and np.all((first[0] >= 0) & (first[0] <= 0.02))
    np.testing.assert_allclose(first[5], first[0] + 5, rtol=1e-6)
    assert calls[0][1] and np.all(calls[0][2] == 1)
    assert timing.seconds_of(lowered, args, 2 * timing.LONG, True) is None
    monkeypatch.setattr(memory, "room", lambda: 16)
    assert timing.seconds_of(lowered, args, 1.0, True) is None
    assert len(calls) == 6


PAIRS = "--data.pairs 96 "
EVERY = {
    "reward": PAIRS,
    "rloo": PAIRS + "--lora.rank 2 --rl.refill 1 --pg.group 2",
    "dpo": PAIRS + "--dpo.batch-size 8",
    "kto": PAIRS + "--kto.batch-size 8",
    "online_dpo": f"--rl.reward {runs.ROOT}/tests/python_rewards.py:short --rl.batch-size 16",
    "best_of_n": PAIRS + "--best.draws 4",
    "raft": PAIRS + "--raft.draws 2 --raft.batch-size 8",
    "ilql": PAIRS + "--q.batch-size 8",
    "ensemble": PAIRS + "--ensemble.members 2 --pg.group 2",
    "dialogue": "--rl.batch-size 16 --pg.group 2 --data.pairs 96",
}
OWN = {"ensemble": "rloo", "best_of_n": "held_out_reward", "dialogue": "rloo"}


SLOW = {"dialogue", "ensemble", "raft", "best_of_n"}  # whose stages the others have too


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.more] * (x in SLOW)) for x in EVERY]
)
def test_every_method_is_planned_to_its_end(name, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "taken", lambda lowered: 1)
    monkeypatch.chdir(tmp_path)
    found = launch.load(name).config
    given = [
        *runs.SFT,
        *parts("--sft.batch-size 8"),
        *runs.SHAPE,
        *runs.WORLD[:2],
        *parts(EVERY[name]),
    ]
    if hasattr(found, "rl") and hasattr(found.rl, "iterations") and "--rl.batch-size" not in given:
        given += parts("--rl.iterations 3 --rl.batch-size 8")
    layout = parts("--devices pmap") if name == "online_dpo" else MESH
    dry, stopped = planned(name, [*given, *layout])
    assert not stopped
    stage = dry.loops[-1]
    assert stage.stage == OWN.get(name, name)
    rows, steps, tokens = plan_table.trained(dry.prepared.cfg, stage, dry)
    assert rows and steps and tokens and stage.trained
    assert sum(map(bool, map(lambda x: x.samples, dry.calls.values()))) > (name == "reward") - 1
    assert not [*tmp_path.iterdir()]
    assert "peak" in "\n".join(plan_table.written(name, dry))


def test_a_model_is_planned_from_its_config_and_its_tokenizer_alone(monkeypatch, tmp_path):
    """No file of weights is there; those of reference and policy are read where a run would read them."""
    monkeypatch.setattr(memory, "taken", lambda lowered: 1)
    words = {**{chr(97 + n): n for n in range(26)}, "<s>": 26, "</s>": 27, "<pad>": 28}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>",
    ).save_pretrained(tmp_path)  # fmt: skip
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    kind = {"model_type": "llama", "vocab_size": 29, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(sizes | kind))
    given = ["--reference", str(tmp_path), "--policy", str(tmp_path), "--data.pairs", "96"]
    given += ["--dpo.batch-size", "8", *MESH]
    dry, stopped = planned("dpo", given)
    assert not stopped
    (stage,) = dry.loops
    weights = 29 * 32 + 3 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    assert stage.trained == weights
    largest = 3 * 32 * 48  # it is copied as it is moved
    most = {"start": weights + largest, "dpo": weights, "after dpo": weights + largest}
    assert dry.on_host == {stage: 4 * n for stage, n in most.items()}


def test_devices_need_not_exist(tmp_path):
    alone = {k: x for k, x in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    given = [*runs.SFT, *runs.SHAPE, *parts("--sft.batch-size 8 --data.demonstrations 80")]
    answer = subprocess.run(
        [sys.executable, runs.ROOT / "launch.py", "sft", *given, "--plan", "--plan-devices", "8",
         "--devices", "mesh:fsdp=8"],
        capture_output=True, text=True, cwd=tmp_path, env=alone,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(
        "plan of sft on mesh:fsdp=8, 8 devices (cpu); nothing is started"
    )
    assert re.search(r"\n  sft +<= 12 +8 +<= 12 ", answer.stdout)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [
        ("game --plan", 1, "game does not: leave it out"),
        ("sft --plan-devices 8", 2, 'plan-devices = "8" must be a number of devices beside --plan'),
        ("sft --plan --plan-devices", 2, 'plan-devices = "" must be a number'),
        ("sft --plan --plan-devices 4", 1, "JAX has begun with 8"),
        ("sft --plan --on slurm", 1, "leave out --on"),
        ("sft --plan --devices mesh:fsdp=3", 1, "does not divide 8 devices"),
    ],
)
def test_what_cannot_be_planned_is_refused(command, code, why, capsys, monkeypatch):
    jax.devices()  # none is imagined from here on
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, os.environ[name])
    assert launch.main(command.split()) == code
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1
