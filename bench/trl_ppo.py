"""PPO here and by TRL: one checkpoint, the same prompts, reward and settings; score and KL over iterations.

    python -m venv trl && trl/bin/pip install torch==2.13.0 transformers==5.24.0 datasets accelerate
    trl/bin/pip install --no-deps trl==1.12.0
    python -m bench.trl_ppo --torch-python trl/bin/python

TODO
"""

import json
import pathlib
import subprocess
from dataclasses import asdict, dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from matplotlib.figure import Figure
from rich.table import Table
from scipy import stats

from bench.trl_side import reward
from rlhf_jax import optimizer, ppo, rollout, sampling, train_step
from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.models import huggingface, networks

WORLDS = {"eos": "EOS ends a response", "fixed": "all responses have {length} tokens"}
SIDES = {"ours": ("rlhf_jax", "#2f7ed8"), "trl": ("TRL", "#e0722a")}


@dataclass(frozen=True)
class Config:
    """Settings of both sides."""

    torch_python: str
    """The interpreter of an environment with torch, transformers and trl."""
    out: pathlib.Path = pathlib.Path("runs/trl_ppo")
    """The folder of the checkpoint and of a result for each seed; what stands there is not run again."""
    picture: pathlib.Path = pathlib.Path("docs/trl_ppo.png")
    """Where the picture goes."""
    seeds: int = 5
    """Runs of each side in each world."""
    worlds: tuple[str, ...] = tuple(WORLDS)
    """`eos`: the last token of the vocabulary ends a response; `fixed`: no token does."""
    iterations: int = 100
    """Rollouts of a run."""
    batch: int = 64
    """Responses in a rollout."""
    vocabulary: int = 64
    """Tokens that the model knows."""
    layers: int = 2
    """Of the GPT-2 that policy, reference and value trunk start from."""
    width: int = 64
    """Of its residual stream."""
    heads: int = 4
    """Of its attention."""
    prompt: int = 4
    """Tokens of a prompt."""
    length: int = 16
    """Most tokens of a response."""
    epochs: int = 4
    """Passes over a rollout."""
    minibatches: int = 1
    """Gradient steps in a pass; with more than one the sides shuffle apart, and a replay is none."""
    lr: float = 1e-3
    """Held: TRL's schedule would move once a rollout, this library's with every gradient step."""
    adam_eps: float = 1e-5
    """After bias correction on both sides."""
    kl_coef: float = 0.2
    """Of k1 in the reward."""
    clip: float = 0.2
    """Of the ratio."""
    value_clip: float = 0.2
    """How far a value moves from the rollout's."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """GAE's lambda."""


def torch_side(cfg: Config, **settings):
    """Runs bench/trl_side.py with the settings of `cfg` and those named here; raises where it fails."""
    file = cfg.out / "settings.json"
    settings = asdict(cfg) | {"checkpoint": cfg.out / "checkpoint"} | settings
    file.write_text(json.dumps(settings, default=str))
    script = pathlib.Path(__file__).with_name("trl_side.py")
    with (cfg.out / "torch.log").open("a") as log:
        command = [cfg.torch_python, str(script), str(file)]
        subprocess.run(command, check=True, stdout=log, stderr=log)


def learner(cfg: Config, eos: int | None):
    """`run(seed, prompts, tokens=None) -> {metric: a list over iterations}`; `tokens` are samples to replay."""
    model = huggingface.load(str(cfg.out / "checkpoint"))
    lm, stop = networks.language_model(model.cfg), () if eos is None else (eos,)
    critic = networks.actor_critic(lm)
    # TRL's PPO never clips a gradient, whatever max_grad_norm says
    adam = optimizer.OptimizerConfig(lr=cfg.lr, schedule="constant", eps=cfg.adam_eps, clip=0.0)
    tx = optimizer.make(adam, cfg.iterations * cfg.epochs * cfg.minibatches)
    method = ppo.PPOConfig(
        epochs=cfg.epochs,
        minibatches=cfg.minibatches,
        gamma=cfg.gamma,
        lam=cfg.lam,
        policy_clip=cfg.clip,
        value_clip=cfg.value_clip,
        value_coef=cfg.value_coef,
    )
    judged = partial(rollout.RolloutConfig, stop=stop, missing_eos_penalty=0.0)
    annotates = {
        replay: jax.jit(
            rollout.make_annotate(lm.policy_fn, critic.fn, judged(recompute_logprobs=replay))
        )
        for replay in (False, True)
    }
    sample = jax.jit(sampling.make_sample(lm, sampling.SampleConfig(cfg.length, stop=stop)))
    update = jax.jit(ppo.make_update(critic.fn, tx, method))

    def replayed(tokens) -> Samples:
        real = tokens >= 0
        mask, nothing = real[:, cfg.prompt :], np.zeros((cfg.batch, cfg.length), np.float32)
        return Samples(np.where(real, tokens, 0).astype(np.int32), real, mask, nothing)

    def run(seed, prompts, tokens=None):
        key, rng = jax.random.key(seed), np.random.default_rng(seed)
        state = train_step.init_state(critic.init(model.params), tx)
        rows, everywhere = np.arange(cfg.batch), np.ones((cfg.batch, cfg.prompt), bool)
        order, log = np.empty(0, int), []
        for i in range(cfg.iterations):
            if len(order) < cfg.batch:
                order = rng.permutation(len(prompts))
            here, order = order[: cfg.batch], order[cfg.batch :]
            if tokens is None:
                asked = Prompts(prompts[here], everywhere, index=rows, draw=0 * rows)
                samples = sample(state.params["policy"], asked, jax.random.fold_in(key, 2 * i))
            else:
                samples = replayed(tokens[i])
            said = zip(np.array(samples.tokens), np.array(samples.attention_mask), strict=True)
            texts = [row[mask][cfg.prompt - 1 :].tolist() for row, mask in said]
            scores = np.array([reward(text, eos) for text in texts], np.float32)
            annotate = annotates[tokens is not None]
            batch = annotate(state.params, model.params, samples, scores)
            rngs = jax.random.fold_in(key, 2 * i + 1)
            state, metrics = update(state, {}, jnp.float32(cfg.kl_coef), batch, rngs)
            log.append(metrics)
        names = {
            "score": "objective/score",
            "kl": "objective/kl",
            "policy_loss": "ppo/policy_loss",
            "value_loss": "ppo/value_loss",
        }
        log = jax.device_get(log)
        return {ours: [float(row[name]) for row in log] for ours, name in names.items()}

    return run


def mean_and_half(x):
    """The mean over the first axis and half its 95 % interval, by Student's t."""
    x = np.asarray(x)
    return x.mean(0), stats.sem(x, axis=0) * stats.t.ppf(0.975, len(x) - 1)


def draw(cfg: Config, results, file: pathlib.Path):
    """Score and KL over iterations, and score over KL, in each world."""
    figure = Figure(figsize=(11, 3.2 * len(cfg.worlds)), layout="constrained")
    for axes, world in zip(figure.subplots(len(cfg.worlds), 3, squeeze=False), cfg.worlds, strict=True):
        for side, (name, colour) in SIDES.items():
            curves = {k: mean_and_half([r[k] for r in results[world][side]]) for k in ("score", "kl")}
            for ax, (mean, half) in zip(axes, curves.values(), strict=False):
                ax.plot(mean, color=colour, label=name)
                ax.fill_between(range(len(mean)), mean - half, mean + half, color=colour, alpha=0.25)
            for r in results[world][side]:
                axes[2].plot(r["kl"], r["score"], color=colour, alpha=0.5, linewidth=0.8)
        labels = "score", "KL to the reference, nats a response", "score"
        for ax, label in zip(axes, labels, strict=True):
            ax.set(ylabel=label, xlabel="iteration")
            ax.grid(alpha=0.2)
            ax.spines[["top", "right"]].set_visible(False)
        axes[2].set_xlabel(labels[1])
        axes[0].legend(frameon=False)
        axes[1].set_title(WORLDS[world].format(length=cfg.length))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main(cfg: Config):
    """Runs what does not stand yet, prints the table and draws the picture."""
    cfg.out.mkdir(parents=True, exist_ok=True)
    torch_side(cfg, result=None)
    words = np.random.default_rng(0).integers(cfg.vocabulary - 1, size=(8 * cfg.batch, cfg.prompt))
    prompts, results = words.astype(np.int32), {}
    for world in cfg.worlds:
        eos = cfg.vocabulary - 1 if world == "eos" else None
        run, results[world] = learner(cfg, eos), {"ours": [], "trl": [], "replay": []}
        for seed in range(cfg.seeds):
            for side, found in results[world].items():
                file = cfg.out / f"{world}-{side}-{seed}.json"
                if not file.exists() and side == "trl":
                    asked = dict(seed=seed, eos=eos, prompts=prompts.tolist(), result=str(file))
                    torch_side(cfg, **asked)
                elif not file.exists():
                    theirs = file.with_name(f"{world}-trl-{seed}.npy")
                    tokens = np.load(theirs) if side == "replay" else None
                    file.write_text(json.dumps(run(seed, prompts, tokens)))
                found.append(json.loads(file.read_text()))
                last = {k: round(float(np.mean(v[-10:])), 3) for k, v in found[-1].items()}
                print(world, side, seed, last, flush=True)
    draw(cfg, results, cfg.picture)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
