"""ILQL: Q-learning on logged responses guides decoding (Snell et al., 2023).

    python launch.py ilql

The log are both responses of every training comparison, each with the reward model's score. Q and V are
learned from it and the SFT policy stays as it is: decoding adds beta (Q - V) to its log-probabilities, so
one training gives a policy for every beta, and a table shows gold against KL over some of them. Gold goes
from -0.11 to 1.30 at a KL of 1.9, and to 1.46 at 3.0 with beta 8 (seed 0); a minute beyond the shared stages.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import optimizer
from rlhf_jax.algorithms import ilql
from rlhf_jax.algorithms.ilql import ILQLConfig
from rlhf_jax.batches import LoggedBatch
from rlhf_jax.bounds import Count, NonNegative, Settings
from rlhf_jax.data.batching import batch_at
from rlhf_jax.data.comparisons import encode_comparisons
from rlhf_jax.models import lora, networks
from rlhf_jax.ops import advantages
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import ground as grounds
from rlhf_jax.pipeline import inference, outcome, rl, stages, verdict
from rlhf_jax.runs import loop


@dataclass(frozen=True)
class QConfig(Settings):
    """The loop round the loss."""

    _main = ("steps", "batch_size")

    steps: Count = 1000
    """Gradient steps."""
    batch_size: Count = 64
    """Logged responses a step."""
    save_every: Count = 200
    """Steps between checkpoints."""
    betas: tuple[NonNegative, ...] = (1.0, 2.0, 4.0, 8.0)
    """Further weights of Q - V that the table shows; the verdict is on ilql.beta."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=2e-3, warmup=20, b2=0.99, eps=1e-8)
    )


@dataclass(frozen=True)
class Config(grounds.Config):
    """Settings of the ilql experiment."""

    ilql: ILQLConfig = ILQLConfig(gamma=1.0, beta=4.0)
    q: QConfig = QConfig()

    def _unread(self) -> dict[str, str]:
        return super()._unread() | grounds.NO_ROLLOUT


config = Config()


def main(cfg: Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    ground = grounds.lay("ilql", cfg, {"q.batch_size": cfg.q.batch_size})
    if ground is None:
        return
    cfg, devices = ground.cfg, ground.devices
    log, root = logged(ground), jax.random.key(cfg.seed)
    q, tx = networks.q_network(ground.lm), optimizer.make(cfg.q.optimizer, cfg.q.steps)
    make = lambda q_fn: ilql.make_train_step(q_fn, tx, cfg.ilql, axis_name=devices.axis_name)
    step = stages.compile_step(devices, "ilql", lora.over_base(make, q.q_fn, cfg.lora))
    base, trained = rl.split(ground, q.init(root, ground.reference))
    frozen = {"base": devices.share(base)}

    def body(state, i):
        batch = batch_at(log, cfg.q.batch_size, cfg.seed, i, devices.take)
        return step(state, frozen, batch)

    state = loop.iterate(
        ground.folder, "ilql", stages.begun(devices, trained, tx, ilql.init_state), body,
        iterations=cfg.q.steps, save_every=cfg.q.save_every, log_every=5, unit="steps",
        wandb=cfg.wandb,
    )  # fmt: skip

    policy = networks.guided(ground.lm, q)
    answers = inference.responder(
        cfg.sample, devices, policy, ground.words, ground.lengths[0], 4 * cfg.sft.batch_size
    )
    state = devices.host(state)
    whole = lora.join(base, state.train.params, cfg.lora)
    state = state._replace(train=state.train._replace(params=whole))
    answer = lambda beta: outcome.after(
        ground, ilql.guided_params(ground.reference, state, replace(cfg.ilql, beta=beta)), answers
    )
    prompts, rows = outcome.held_out_prompts(ground), []
    for beta in sorted({0.0, cfg.ilql.beta, *cfg.q.betas}):
        said = answer(beta)
        ratio = said.samples.logprobs - outcome.reference_logprobs(ground, said.samples)
        rows.append({
            "beta": beta,
            "kl": verdict.kl(prompts, ratio)["mean"],
            "score": float(outcome.scores(ground, said).mean()),
            "gold": float(outcome.golds(ground, prompts, said).mean()),
        })  # fmt: skip
    outcome.conclude(ground, "ILQL", answer(cfg.ilql.beta), extra={"by beta": rows})


def logged(ground: grounds.Ground) -> LoggedBatch:
    """Both sides of every comparison, with the reward model's score on the last token, of deviation 1."""
    pairs = encode_comparisons(ground.words, ground.pairs, *ground.lengths)
    responses = jax.tree.map(lambda *x: np.concatenate(x), *pairs.sides)
    scores = inference.score(ground.devices, ground.reward_fn, ground.reward, responses)
    scores = jnp.asarray((scores - scores.mean()) / scores.std())
    rewards = advantages.on_last_token(scores, jnp.asarray(responses.mask))
    return LoggedBatch(responses=responses, rewards=np.asarray(rewards))
