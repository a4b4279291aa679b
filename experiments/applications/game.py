"""A game of several turns with a known optimum: PPO or RLOO guesses a number.

    python launch.py game
    python launch.py game --algorithm rloo

takes one to two minutes on two CPU cores. A language model learns the words from games of a player who
guesses at random (SFT); then it plays, and rewards on several of its tokens teach it binary search. The
environment's words lie between its own as holes in the mask, and no loss sees them. The return should rise
from the exact return of random play to within 5 % of the exact optimum.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer
from rlhf_jax.algorithms import policy_gradient, ppo, rollout
from rlhf_jax.algorithms.learner import Learner
from rlhf_jax.algorithms.policy_gradient import PolicyGradientConfig
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.bounds import Bound, Count, NonNegative, Seed, Settings, batch_parts, check_divides
from rlhf_jax.devices import parallel
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import keys, playing, stages
from rlhf_jax.runs import conclusion, loop, run, tracker
from rlhf_jax.tasks import guessing
from rlhf_jax.tasks.guessing import GuessingConfig

ROLLOUT = rollout.RolloutConfig()  # a missing END costs nothing: tokens have rewards of their own
SFT = OptimizerConfig(lr=1e-2, warmup=10, b2=0.99, eps=1e-8)


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the game experiment."""

    _main = ("seed", "run", "devices", "algorithm")
    _incidental = ("run", "devices", "wandb")

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
    """Baseline of the return: a critic (ppo), or other games with the same secret (rloo)."""
    game: GuessingConfig = GuessingConfig()
    model: ModelConfig = ModelConfig(d_model=32, context=32, heads=2)
    sft: stages.SFTConfig = stages.SFTConfig(
        steps=100, batch_size=128, eval_every=25, optimizer=SFT
    )
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
    """Games for measuring the return, with secrets of their own."""

    @property
    def method(self) -> tuple[str, PPOConfig | PolicyGradientConfig]:
        """The settings of the algorithm, and their name."""
        return ("ppo", self.ppo) if self.algorithm == "ppo" else ("pg", self.pg)

    def _conditions(self, at: str):
        parallel.check_name(self.devices, f"{at}devices")
        stages.check_packing(self.sft, self.model, at)
        area, own = self.method
        if area == "pg":
            check_divides(f"{at}pg.group", self.pg.group, f"{at}batch_size", self.batch_size)
        batch_parts(f"{at}{area}", own, f"{at}batch_size", self.batch_size)
        columns = 1 + self.game.turns * (guessing.TURN + 1)
        if columns > self.model.context:
            raise ValueError(
                f"{at}game.turns = {self.game.turns} make {columns} tokens a game, and {at}model.context = "
                f"{self.model.context}: set that to {columns} or more"
            )

    def _unread(self) -> dict[str, str]:
        (area, own), why = self.method, f'algorithm = "{self.algorithm}" does not read it'
        missing = {"pg" if area == "ppo" else "ppo": why}
        if own.kl_in_reward == own.kl_in_loss == "none":
            missing["kl_coef"] = "kl_in_reward and kl_in_loss are none"
        return missing


config = Config()


def make_learner(cfg: Config, lm, tx, axis_name) -> Learner:
    """The learner of PPO or RLOO."""
    if cfg.algorithm == "ppo":
        critic = networks.actor_critic(lm)
        return ppo.make_learner(lm.policy_fn, critic, tx, cfg.ppo, ROLLOUT, axis_name=axis_name)
    return policy_gradient.make_learner(lm.policy_fn, tx, cfg.pg, ROLLOUT, axis_name=axis_name)


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    networks.check_backend(cfg.model)
    if cfg.wandb:
        tracker.load()
    area, own = cfg.method
    sizes = batch_parts(area, own, "batch_size", cfg.batch_size)
    devices = parallel.choose(cfg.devices, stages.parts("sft", cfg.sft) | sizes, cfg.model.cuts)
    folder = run.open_run("game", cfg, cfg.run)
    if conclusion.is_finished(folder, conclusion.again("game")):
        return
    if cfg.wandb:
        tracker.start(folder)
    rollouts, updates = (keys.key_of(cfg.seed, stage) for stage in ("rollout", "update"))
    vocab_size = len(guessing.vocabulary(cfg.game))
    lm = networks.language_model(replace(cfg.model, vocab_size=vocab_size))
    sample_turn = playing.make_sample_turn(devices, lm)

    # 1. a language model that knows the words, from games of random play
    place = stages.Place(folder, devices, cfg.seed)
    reference, sft_loss = stages.sft(place, cfg.sft, lm, *playing.demonstrations(cfg))

    # 2. it plays, and learns from its rewards
    tx = optimizer.make(cfg.optimizer, cfg.iterations * own.epochs * own.minibatches)
    learner = stages.compile_learner(devices, make_learner(cfg, lm, tx, devices.axis_name))
    with_rewards = partial(rollout.with_rewards, cfg=ROLLOUT)
    with_rewards = devices.compile(with_rewards, (P(DATA), P(DATA)), P(DATA))

    def iteration(state, i):
        games = np.arange(i * cfg.batch_size, (i + 1) * cfg.batch_size, dtype=np.int32)
        index, draw = np.divmod(games, learner.group)  # games of a group share a secret
        policy = learner.policy_of(state.params)
        key = jax.random.fold_in(rollouts, i)
        samples, rewards = playing.play(cfg, sample_turn, policy, index, draw, key)
        seen = learner.annotate(state.params, reference, devices.put_batch(samples))
        batch = with_rewards(seen, devices.put_batch(rewards))
        kl_coef = devices.put(np.float32(cfg.kl_coef * (1 - i / cfg.iterations)))
        state, metrics = learner.update(state, {}, kl_coef, batch, jax.random.fold_in(updates, i))
        won, turns = guessing.outcomes(*playing.words_of(samples))
        return state, metrics | {"game/win_rate": won.mean(), "game/turns": turns.mean()}

    state = stages.init_state_on(devices, learner.init(reference), tx)
    state = loop.iterate(
        folder, cfg.algorithm, state, iteration,
        iterations=cfg.iterations, save_every=cfg.save_every,
    )  # fmt: skip

    # 3. the results: the same games before and after, beside the exact values
    policies = {"before": reference, "after": learner.policy_of(state.params)}
    key = keys.key_of(cfg.seed, "results")
    found, samples, tokens = playing.compare(cfg, sample_turn, policies, key)
    found["SFT held-out loss, nats a token"] = sft_loss
    conclusion.write(folder, found, samples=samples, tokens=tokens)
    print(*(f"{row['prompt']} {row['after']}" for row in samples[:5]), sep="\n")
    conclusion.show(folder, conclusion.again("game"))
