"""PPO here and by TRL: one checkpoint, the same prompts, reward and settings; score and KL over iterations.

    python -m venv trl && trl/bin/pip install torch==2.13.0 transformers==5.24.0 datasets accelerate
    trl/bin/pip install --no-deps trl==1.12.0
    python -m bench trl_ppo --torch-python trl/bin/python

The checkpoint is a random GPT-2 (2 layers of width 64, 64 tokens); the reward counts ascents of token ids
(trl_side.reward). Matched: Adam 0.9, 0.999, 1e-5 without decay at a constant rate, no gradient clip (TRL's
PPO calls none, whatever max_grad_norm says), float32, no missing-EOS penalty, a critic that starts as the
checkpoint with a zero head and bias, a pad that the model cannot say. Not matched: random numbers, the order
of prompts.

About 35 minutes on two CPU cores shared with other work (jax 0.10.2). Means of 5 seeds and 95 % intervals,
by Student's t, of the difference by Welch's; the end is the last ten iterations:

                                rlhf_jax          TRL               difference
    no token    score, end       7.39 +- 0.15      7.49 +- 0.19     -0.10 [-0.30, 0.10]
    ends        KL, end         12.02 +- 0.44     12.13 +- 0.54     -0.12 [-0.70, 0.46]
                score a nat     0.612 +- 0.014    0.615 +- 0.016    -0.002 [-0.020, 0.015]
    EOS ends    score, end       8.99 +- 0.28      8.80 +- 0.64      0.20 [-0.44, 0.82]
                KL, end         13.64 +- 0.47     13.28 +- 0.98      0.36 [-0.61, 1.33]
                score a nat     0.613 +- 0.007    0.615 +- 0.015    -0.002 [-0.017, 0.013]

None of these differences is told from zero. Unmoved, without EOS, the checkpoint scores 0.031 +- 0.007 here
and 0.025 +- 0.007 by `generate` as TRL calls it (307200 responses each).

A replay (TRL's samples, the updates of this library) tells more:

- Without EOS, five iterations (20 gradient steps) agree to 3e-6 nats of KL in every seed. The policy loss
  differs by sqrt(1 - 1/n), 7e-4 of it: TRL whitens advantages by the unbiased variance, ppo.py by the biased.
- With EOS the value loss differs from the first iteration on, by 3e-2: TRL puts the score on the first pad
  after EOS, and trains a value of its own there. With `sequence_lengths_p1 = sequence_lengths` in its
  ppo_trainer.py it agrees again: in 5 iterations of 3 seeds value loss to 9e-6, KL to 3e-6 nats.
- Later the two drift apart, as runs from slightly different starts do: at the twelfth iteration of seed 0 the
  KL is 7e-3 from TRL's; of five replays whose checkpoint was moved by 1e-5 of itself it is 2e-4 to 1e-2 from
  the unmoved one's.
"""

import json
import pathlib
import subprocess
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
import rich
from matplotlib.figure import Figure
from rich.table import Table
from scipy import stats

from bench.replication.trl_side import PROMPT, VOCABULARY, reward
from rlhf_jax import optimizer, sampling, train_step
from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.bounds import Count, NonNegative, Positive, Settings, Whole
from rlhf_jax.models import networks
from rlhf_jax.models.hub import huggingface

WORLDS = {"fixed": "no token ends a response", "eos": "EOS ends a response"}
SIDES = {"ours": ("rlhf_jax", "#2f7ed8"), "trl": ("TRL", "#e0722a")}
PPO = dict(  # in the names of ppo.PPOConfig; trl_side.py has TRL's
    epochs=4, minibatches=1, policy_clip=0.2, value_clip=0.2, value_coef=0.1, gamma=1.0, lam=0.95
)
LOGGED = {
    "score": "objective/score",
    "kl": "objective/kl",
    "policy_loss": "ppo/policy_loss",
    "value_loss": "ppo/value_loss",
}


@dataclass(frozen=True)
class Config(Settings):
    """Settings of both sides."""

    torch_python: str
    """The interpreter of an environment with torch, transformers and trl."""
    out: pathlib.Path = pathlib.Path("runs/trl_ppo")
    """The folder of the checkpoint and of a result for each seed; what stands there is not run again."""
    picture: pathlib.Path = pathlib.Path("docs/trl_ppo.png")
    """Where the picture goes."""
    seeds: Count = 5
    """Runs of each side in each world."""
    replay: Whole = 20
    """Iterations of each of TRL's runs whose samples are put through the updates of this library."""
    worlds: tuple[str, ...] = tuple(WORLDS)
    """`fixed`: no token ends a response; `eos`: the last of the vocabulary does."""
    iterations: Count = 150
    """Rollouts of a run, of which the last ten are the end that the table tells."""
    batch: Count = 64
    """Responses in a rollout; all of them make one gradient step, so neither side shuffles."""
    length: Count = 12
    """Most tokens of a response."""
    lr: Positive = 1e-3
    """Held: TRL's schedule would move once a rollout, this library's with every gradient step."""
    adam_eps: Positive = 1e-5
    """After bias correction on both sides."""
    kl_coef: NonNegative = 0.2
    """Of k1 in the reward."""


def torch_side(cfg: Config, **settings):
    """Runs trl_side.py with the settings of `cfg` and those named here; raises where it fails."""
    file = cfg.out / "settings.json"
    settings = asdict(cfg) | {"checkpoint": cfg.out / "checkpoint", "ppo": PPO} | settings
    file.write_text(json.dumps(settings, default=str))
    script = pathlib.Path(__file__).with_name("trl_side.py")
    with (cfg.out / "torch.log").open("a") as log:
        command = [cfg.torch_python, str(script), str(file)]
        subprocess.run(command, check=True, stdout=log, stderr=log)


def learner(cfg: Config, eos: int | None):
    """`run(seed, prompts, tokens=None) -> {metric: [iterations]}`; `tokens` are samples to replay."""
    model = huggingface.load(str(cfg.out / "checkpoint"))
    lm, stop = networks.language_model(model.cfg), () if eos is None else (eos,)
    critic = networks.actor_critic(lm)
    # TRL's PPO never clips a gradient, whatever max_grad_norm says
    adam = optimizer.OptimizerConfig(lr=cfg.lr, schedule="constant", eps=cfg.adam_eps, clip=0.0)
    tx = optimizer.make(adam, cfg.iterations * PPO["epochs"])
    judged = rollout.RolloutConfig(missing_eos_penalty=0.0, recompute_logprobs=True)
    sample = jax.jit(sampling.make_sample(lm, sampling.SampleConfig(cfg.length, stop=stop)))
    annotate = jax.jit(rollout.make_annotate_with_values(lm.policy_fn, critic.fn, judged))
    update = jax.jit(ppo.make_update(critic.fn, tx, ppo.PPOConfig(**PPO)))

    def replayed(tokens) -> Samples:
        real = tokens >= 0
        mask, unknown = real[:, PROMPT:], np.zeros((cfg.batch, cfg.length), np.float32)
        ended = np.any(mask & (tokens[:, PROMPT:] == eos), axis=1)
        return Samples(np.where(real, tokens, 0).astype(np.int32), real, mask, unknown, ended)

    def run(seed, prompts, tokens=None):
        key, rng = jax.random.key(seed), np.random.default_rng(seed)
        state = train_step.init_state(critic.init(model.params), tx)
        rows, everywhere = np.arange(cfg.batch), np.ones((cfg.batch, PROMPT), bool)
        order, log = np.empty(0, int), []
        for i in range(cfg.iterations if tokens is None else cfg.replay):
            sample_rng, update_rng = jax.random.split(jax.random.fold_in(key, i))
            if tokens is None:
                order = order if len(order) else rng.permutation(len(prompts))
                here, order = order[: cfg.batch], order[cfg.batch :]
                asked = Prompts(prompts[here], everywhere, index=rows, draw=0 * rows)
                samples = sample(state.params["policy"], asked, sample_rng)
            else:
                samples = replayed(tokens[i])
            said = zip(np.array(samples.tokens), np.array(samples.attention_mask), strict=True)
            texts = [row[mask][PROMPT - 1 :].tolist() for row, mask in said]
            scores = np.array([reward(text, eos) for text in texts], np.float32)
            seen = annotate(state.params, model.params, samples)
            batch = rollout.with_rewards(seen, scores, judged)
            state, metrics = update(state, {}, jnp.float32(cfg.kl_coef), batch, update_rng)
            log.append(metrics)
        log = jax.device_get(log)
        return {ours: [float(row[name]) for row in log] for ours, name in LOGGED.items()}

    return run


def check(cfg: Config):
    """Raises ValueError where results of other settings stand in the folder."""
    file, free = (
        cfg.out / "ppo.json",
        ("torch_python", "out", "picture", "seeds", "replay", "worlds"),
    )
    settings = {k: v for k, v in asdict(cfg).items() if k not in free} | PPO
    if file.exists() and json.loads(file.read_text()) != settings:
        raise ValueError(f"{cfg.out} holds results of other settings: name another folder by --out")
    file.write_text(json.dumps(settings))


def mean_and_half(x):
    """The mean over the first axis and half its 95 % interval, by Student's t."""
    x = np.asarray(x)
    return x.mean(0), stats.sem(x, axis=0) * stats.t.ppf(0.975, len(x) - 1)


def draw(cfg: Config, results, file: pathlib.Path):
    """Means over seeds: score and KL over iterations with their intervals, and score over KL."""
    figure = Figure(figsize=(11, 3.1 * len(cfg.worlds)), layout="constrained")
    rows = figure.subplots(len(cfg.worlds), 3, squeeze=False)
    for (left, middle, right), world in zip(rows, cfg.worlds, strict=True):
        for side, (name, colour) in SIDES.items():
            means = {}
            for axes, metric in ((left, "score"), (middle, "kl")):
                mean, half = mean_and_half([r[metric] for r in results[world][side]])
                axes.plot(mean, color=colour, label=name)
                band = range(len(mean)), mean - half, mean + half
                axes.fill_between(*band, color=colour, alpha=0.25, linewidth=0)
                means[metric] = mean
            right.plot(means["kl"], means["score"], color=colour, linewidth=1)
        left.set(title=WORLDS[world], xlabel="iteration", ylabel="score")
        middle.set(xlabel="iteration", ylabel="KL, nats a response")
        right.set(xlabel="KL, nats a response", ylabel="score")
        left.legend(frameon=False)
        for axes in (left, middle, right):
            axes.grid(alpha=0.2)
            axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def table(cfg: Config, results, world: str) -> Table:
    """What both sides begin and end with, their difference, and how far a replay is from its original."""
    both = results[world]
    start = np.mean([r["score"][0] for side in SIDES for r in both[side]])  # the reference's own
    end = lambda r, name: np.mean(r[name][-10:])
    rows = {
        "score, first iteration": lambda r: r["score"][0],
        "score, mean of all": lambda r: np.mean(r["score"]),
        "score, end": lambda r: end(r, "score"),
        "KL, mean of all": lambda r: np.mean(r["kl"]),
        "KL, end": lambda r: end(r, "kl"),
        "score gained a nat, end": lambda r: (end(r, "score") - start) / end(r, "kl"),
        "score - kl_coef KL, end": lambda r: end(r, "score") - cfg.kl_coef * end(r, "kl"),
    }
    shown = Table("", *(name for name, _ in SIDES.values()), "difference", title=WORLDS[world])
    for name, of in rows.items():
        ours, theirs = ([of(r) for r in both[side]] for side in SIDES)
        cells = [f"{m:.3f} ± {h:.3f}" for m, h in map(mean_and_half, (ours, theirs))]
        low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
        difference = np.mean(ours) - np.mean(theirs)
        shown.add_row(name, *cells, f"{difference:.3f} [{low:.3f}, {high:.3f}]")
    for name in ("kl", "policy_loss", "value_loss"):
        pairs = zip(both["replay"], both["trl"], strict=True)
        apart = [np.abs(np.subtract(a[name], b[name][: cfg.replay])) for a, b in pairs]
        first, five, all_of_it = (np.max([x[:n] for x in apart]) for n in (1, 5, cfg.replay))
        told = f"{first:.0e}, {five:.0e} in 5, {all_of_it:.0e} in {cfg.replay}"
        shown.add_row(f"replay, {name}", "", "", told)
    return shown


def main(cfg: Config):
    """Runs what does not stand yet, prints the tables and draws the picture."""
    cfg.out.mkdir(parents=True, exist_ok=True)
    check(cfg)
    torch_side(cfg, result=None)
    words = np.random.default_rng(0).integers(VOCABULARY - 1, size=(8 * cfg.batch, PROMPT))
    prompts, results = words.astype(np.int32), {}
    for world in cfg.worlds:
        eos = VOCABULARY - 1 if world == "eos" else None
        run, results[world] = learner(cfg, eos), {"trl": [], "ours": [], "replay": []}
        for seed in range(cfg.seeds):
            for side, found in results[world].items():
                file = cfg.out / f"{world}-{side}-{seed}.json"
                if not file.exists() and side == "trl":
                    asked = dict(seed=seed, eos=eos, prompts=prompts.tolist(), result=str(file))
                    torch_side(cfg, **asked)
                elif not file.exists():
                    theirs = cfg.out / f"{world}-trl-{seed}.npy"
                    tokens = np.load(theirs) if side == "replay" else None
                    file.write_text(json.dumps(run(seed, prompts, tokens)))
                found.append(json.loads(file.read_text()))
                last = {k: round(v[-1], 3) for k, v in found[-1].items()}
                print(world, side, seed, last, flush=True)
    for world in cfg.worlds:
        rich.print(table(cfg, results, world))
    draw(cfg, results, cfg.picture)
