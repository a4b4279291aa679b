"""A game of several turns with a known optimum: PPO or RLOO guesses a number.

    python launch.py game
    python launch.py game --algorithm rloo

takes one to two minutes on two CPU cores. A language model first learns the words from games of random play
(SFT). It then plays, and rewards on several of its tokens teach it binary search. The environment's words
between its own are holes in the mask, and no loss sees them. The return should rise from that of random
play, which is exact, to within 5 % of the exact optimum.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer, sampling, train_step
from rlhf_jax.algorithms import policy_gradient, ppo, rollout
from rlhf_jax.algorithms.learner import Learner
from rlhf_jax.algorithms.policy_gradient import PolicyGradientConfig
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.algorithms.rollout import RolloutConfig
from rlhf_jax.bounds import Bound, Count, NonNegative, Seed, Settings, check_divides
from rlhf_jax.devices import parallel
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.evaluation.evaluate import bootstrap_interval
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import playing, stages
from rlhf_jax.pipeline.results import show, stands, write
from rlhf_jax.runs import loop, metrics, run
from rlhf_jax.sampling import SampleConfig
from rlhf_jax.tasks import guessing
from rlhf_jax.tasks.guessing import GuessingConfig

ROLLOUT = RolloutConfig()  # rewards are given token by token: nothing is taken off a missing END
SFT = stages.SFTConfig(
    steps=100,
    batch_size=128,
    eval_every=25,
    optimizer=OptimizerConfig(lr=1e-2, warmup=10, b2=0.99, eps=1e-8),
)


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the game experiment."""

    _main = ("seed", "run", "devices", "algorithm")

    seed: Seed = 0
    """Seed of every random draw."""
    run: str = ""
    """Run directory; empty: runs/game/HASH-OF-CONFIG."""
    devices: str = "auto"
    """Device layout: auto, device (the first one), pmap, or a mesh such as mesh:data=-1,fsdp=2,tensor=2
    (-1: all remaining devices)."""
    wandb: bool = False
    """Log to Weights & Biases in addition to the run directory."""
    algorithm: Literal["ppo", "rloo"] = "ppo"
    """PPO with a critic, or RLOO against other games with the same secret."""
    game: GuessingConfig = GuessingConfig()
    model: ModelConfig = ModelConfig(d_model=32, context=32, heads=2)
    sft: stages.SFTConfig = SFT
    demonstrations: Annotated[int, Bound(ge=8)] = 4096
    """Games of random play for SFT; an eighth of them is held out."""
    ppo: PPOConfig = PPOConfig(epochs=2, minibatches=2, value_coef=0.5)
    pg: PolicyGradientConfig = replace(policy_gradient.RLOO, group=8, minibatches=2)
    iterations: Count = 200
    """Number of rollouts, each followed by an update."""
    batch_size: Count = 512
    """Games per rollout."""
    kl_coef: NonNegative = 0.1
    """Weight of the KL to random play, which keeps the policy exploring; it falls linearly to zero."""
    save_every: Count = 50
    """Iterations between checkpoints."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-3))
    eval_games: Count = 2048
    """Games, with secrets of their own, that measure the return."""

    def _conditions(self, at: str):
        parallel.check_name(self.devices, f"{at}devices")
        area, learner = ("ppo", self.ppo) if self.algorithm == "ppo" else ("pg", self.pg)
        rows, whole = self.batch_size, f"{at}batch_size"
        check_divides(f"{at}{area}.minibatches", learner.minibatches, whole, rows)
        check_divides(f"{at}{area}.group", getattr(learner, "group", 1), whole, rows)
        whole, rows = f"{whole} / {at}{area}.minibatches", rows // learner.minibatches
        check_divides(f"{at}{area}.microbatches", learner.microbatches, whole, rows)
        columns = 1 + self.game.turns * (guessing.TURN + 1)
        if columns > self.model.context:
            raise ValueError(
                f"{at}game.turns = {self.game.turns} make {columns} tokens a game, and {at}model.context = "
                f"{self.model.context}: set that to {columns} or more"
            )

    def _unread(self) -> dict[str, str]:
        other, learner = ("pg", self.ppo) if self.algorithm == "ppo" else ("ppo", self.pg)
        missing = {
            other: f'algorithm = "{self.algorithm}" does not read it',
            "model.vocab_size": "the words of the game decide it",
        }
        if learner.kl_in_reward == learner.kl_in_loss == "none":
            missing["kl_coef"] = "kl_in_reward and kl_in_loss are none"
        return missing


config = Config()
AGAIN = "python launch.py game --seed 1 (or any other setting, or --run NEW_FOLDER)"


def main(cfg: Config):
    """Runs whatever the run directory lacks, and prints the results."""
    own = cfg.ppo if cfg.algorithm == "ppo" else cfg.pg
    networks.check_backend(cfg.model)
    if cfg.wandb:
        metrics.load_wandb()
    devices = parallel.choose(cfg.devices, batch_sizes(cfg, own), cfg.model.cuts)
    folder = run.open_run("game", cfg, cfg.run)
    if stands(folder):
        print("this run is finished")
        return show(folder, AGAIN)
    root = jax.random.key(cfg.seed)
    vocab_size = len(guessing.vocabulary(cfg.game))
    lm = networks.language_model(replace(cfg.model, vocab_size=vocab_size))
    sample = devices.compile(
        sampling.make_sample(lm, SampleConfig(length=guessing.TURN, stop=(guessing.END,))),
        (P(), P(DATA), P()),
        P(DATA),
    )

    def sample_turn(params, prompts, key):
        return devices.fetch(sample(params, devices.put_batch(prompts), key))

    # 1. a language model that knows the words, from games of random play
    games, held_out = playing.demonstrations(cfg), cfg.demonstrations // 8
    reference, sft_loss = stages.sft(
        stages.Place(folder, devices, cfg.seed, cfg.wandb), cfg.sft, lm,
        jax.tree.map(lambda x: x[held_out:], games), jax.tree.map(lambda x: x[:held_out], games),
    )  # fmt: skip
    reference = devices.put(reference)

    # 2. it plays, and learns from what it earns
    tx = optimizer.make(cfg.optimizer, cfg.iterations * own.epochs * own.minibatches)
    learner = make_learner(cfg, lm, tx, devices.axis_name)
    params, group = learner.init(jax.device_get(reference)), learner.group
    annotate = devices.compile(learner.annotate, (P(), P(), P(DATA)), P(DATA))
    with_rewards = devices.compile(
        partial(rollout.with_rewards, cfg=ROLLOUT), (P(DATA), P(DATA)), P(DATA)
    )
    update = stages.compile_update(devices, learner.update)

    def iteration(state, i):
        key = jax.random.fold_in(root, i)
        rows = np.arange(cfg.batch_size, dtype=np.int32)
        index = i * (cfg.batch_size // group) + rows // group
        samples, rewards = playing.play(
            cfg, sample_turn, learner.policy_of(state.params), index, rows % group, key
        )
        seen = annotate(state.params, reference, devices.put_batch(samples))
        batch = with_rewards(seen, devices.put_batch(rewards))
        kl_coef = devices.put(np.float32(cfg.kl_coef * (1 - i / cfg.iterations)))
        state, metrics = update(state, {}, kl_coef, batch, jax.random.fold_in(key, 2**16))
        won, turns = guessing.outcomes(*playing.words_of(samples))
        return state, metrics | {"game/win_rate": won.mean(), "game/turns": turns.mean()}

    state = loop.iterate(
        folder, cfg.algorithm, devices.put(train_step.init_state(params, tx)), iteration,
        iterations=cfg.iterations, save_every=cfg.save_every, wandb=cfg.wandb,
    )  # fmt: skip

    # 3. the results: the same games before and after, beside what is known exactly
    index = playing.EVALUATION_FROM + np.arange(cfg.eval_games, dtype=np.int32)
    key = jax.random.fold_in(root, 2**30)
    sides = {
        name: playing.evaluate_games(cfg, sample_turn, policy, index, key)
        for name, policy in (("before", reference), ("after", learner.policy_of(state.params)))
    }
    returns = {name: rewards.sum(axis=1) for name, (_, rewards) in sides.items()}
    ends = {
        name: guessing.outcomes(*playing.words_of(samples)) for name, (samples, _) in sides.items()
    }
    optimum = guessing.optimal_return(cfg.game)
    intervals = lambda of: {name: bootstrap_interval(x)._asdict() for name, x in of.items()}
    results = {
        "return": intervals(returns)
        | {"of random play, exact": guessing.random_return(cfg.game), "optimum, exact": optimum},
        "share of the optimum": float(returns["after"].mean() / optimum),
        "games won": intervals({name: won for name, (won, _) in ends.items()}),
        "turns a game": intervals({name: turns for name, (_, turns) in ends.items()}),
        "SFT held-out loss, nats a token": sft_loss,
        "entropy of random play, nats a token": float(np.log(cfg.game.numbers) / guessing.TURN),
    }
    samples, tokens = playing.rows_of(cfg, index, sides, returns)
    write(folder, results, samples=samples, tokens=tokens)
    for row in samples[:5]:
        print(f"{row['prompt']} {row['after']}")
    return show(folder, AGAIN)


def batch_sizes(cfg: Config, learner) -> dict[str, int]:
    """Numbers of rows that must divide over the devices."""
    area, rows = "ppo" if cfg.algorithm == "ppo" else "pg", cfg.batch_size // learner.minibatches
    return stages.parts("sft", cfg.sft) | {
        "batch_size": cfg.batch_size,
        f"batch_size / {area}.minibatches": rows,
        f"batch_size / {area}.minibatches / {area}.microbatches": rows // learner.microbatches,
    }


def make_learner(cfg: Config, lm, tx, axis_name) -> Learner:
    """The learner of PPO or RLOO, chosen by `algorithm`."""
    if cfg.algorithm == "ppo":
        critic = networks.actor_critic(lm)
        return ppo.make_learner(lm.policy_fn, critic, tx, cfg.ppo, ROLLOUT, axis_name=axis_name)
    return policy_gradient.make_learner(lm.policy_fn, tx, cfg.pg, ROLLOUT, axis_name=axis_name)
