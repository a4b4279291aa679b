"""ILQL: Q-learning on logged responses guides decoding (Snell et al., 2023).

    python launch.py ilql

The log consists of both responses of every training comparison, each with the reward model's score. Q and V
learn from it and the SFT policy stays unchanged: decoding adds beta (Q - V) to its log-probabilities, so
one training gives a policy for every beta, and a table shows gold against KL over some of them. Gold rises
from -0.39 to 1.36 at a KL of 2.2, and to 1.46 at 3.1 with beta 8 (seed 0); a minute beyond the shared
stages.
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
from rlhf_jax.data.comparisons import Comparison, encode_comparisons
from rlhf_jax.models import q_networks
from rlhf_jax.ops import advantages
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import generation, keys, people, results, settings, stages, texts
from rlhf_jax.pipeline.prepare import Prepared, prepare
from rlhf_jax.pipeline.scoring import Reward


@dataclass(frozen=True)
class QConfig(Settings):
    """The loop around the loss."""

    _main = ("steps", "batch_size")
    _length = ("steps",)

    steps: Count = 1000
    """Number of gradient steps."""
    batch_size: Count = 64
    """Logged responses in a step."""
    save_every: Count = 200
    """Steps between checkpoints."""
    betas: tuple[NonNegative, ...] = (1.0, 2.0, 4.0, 8.0)
    """Further weights of Q - V in the table; the main results are for ilql.beta."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=2e-3, warmup=20, b2=0.99, eps=1e-8)
    )


@dataclass(frozen=True)
class Config(settings.RunConfig):
    """Settings of the ilql experiment."""

    ilql: ILQLConfig = ILQLConfig(gamma=1.0, beta=4.0)
    q: QConfig = QConfig()

    def needs(self) -> texts.Needs:
        """The files that the method trains on."""
        corpus = () if self.reference else ("corpus",)
        optional = ("corpus",) if self.reference else ()
        return texts.Needs((*corpus, "comparisons"), (*optional, "prompts"), halves=True)

    def _unread(self) -> dict[str, str]:
        own = settings.NO_ROLLOUT | {"policy": "the SFT policy stays as it is"}
        return super()._unread() | own


config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("ilql", cfg, {"q.batch_size": cfg.q.batch_size})
    if run is None:
        return
    cfg, devices = run.cfg, run.devices
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)
    assert reward is not None and pairs is not None

    # Q and V, from the log
    log = logged(run, reward, pairs.train)
    q, tx = q_networks.q_network(run.lm), optimizer.make(cfg.q.optimizer, cfg.q.steps)
    job = stages.Fit(
        stage="ilql",
        start=lambda: q.init(keys.key_of(cfg.seed, "policy"), reference),
        make=lambda fn: ilql.make_train_step(fn, tx, cfg.ilql, axis_name=devices.axis_name),
        fn=q.q_fn,
        batch_at=lambda i: batch_at(log, cfg.q.batch_size, cfg.seed, i, devices.take),
        tx=tx,
        steps=cfg.q.steps,
        save_every=cfg.q.save_every,
        key=keys.adapters(cfg.seed, "policy"),
        log_every=5,
        init=ilql.init_state,
    )
    params, state = stages.fit(stages.place(run), job, cfg.lora)
    state = state._replace(train=state.train._replace(params=params))

    # a policy for every beta
    policy = q_networks.guided(run.lm, q)
    generator = generation.make_generator(
        cfg.sample, devices, policy, run.tokenizer, run.lengths[0], 4 * cfg.sft.batch_size,
        run.texts.environment,
    )  # fmt: skip
    guided = lambda beta: ilql.guided_params(reference, state, replace(cfg.ilql, beta=beta))
    answer = lambda beta: results.respond(run, guided(beta), generator)
    judges, table = results.Judges(reward, held_out_reward), []
    rows = results.held_out_rows(run)
    prompts = [row.prompt for row in rows]
    judged = judges.of(run)
    by = next(x for x in (results.GOLD, results.HELD_OUT) if x in judged)
    for beta in sorted({0.0, cfg.ilql.beta, *cfg.q.betas}):
        said = answer(beta)
        ratio = results.log_ratios(run, reference, said.samples)
        table.append({
            "beta": beta,
            "kl": results.kl(prompts, ratio)["mean"],
            "score": float(judged["score of the reward model"](rows, said).mean()),
            by: float(judged[by](rows, said).mean()),
        })  # fmt: skip
    results.conclude(
        run, "ILQL", reference, answer(cfg.ilql.beta), judges,
        extra={"by beta": table}, pairs=pairs, facts=facts,
    )  # fmt: skip


def logged(run: Prepared, reward: Reward, compared: list[Comparison]) -> LoggedBatch:
    """Both sides of every comparison, with the standardised score of the reward model on the last token.

    Who won, how likely and with which weight is told by the reward model alone.
    """
    pairs = encode_comparisons(run.tokenizer, compared, *run.lengths)
    responses = jax.tree.map(lambda *x: np.concatenate(x), *pairs.sides)
    scores = generation.score(run.devices, reward.fn, reward.params, responses)
    scores = jnp.asarray((scores - scores.mean()) / scores.std())
    rewards = advantages.on_last_token(scores, jnp.asarray(responses.mask))
    return LoggedBatch(responses=responses, rewards=np.asarray(rewards))
