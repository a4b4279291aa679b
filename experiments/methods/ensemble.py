"""RLOO against the combined score of several reward models (Coste et al., 2024).

    python launch.py ensemble                          # --ensemble.combine mean, min or uwo
    python launch.py ensemble --ensemble.combine warm                             # averaged weights

Some minutes beyond the shared stages; --start-from RUN takes those from a run. Held-out accuracy is 0.689 to
0.776 for a member, 0.766 for their mean, 0.761 for mean less half a deviation (UWO) and 0.646 for averaged
weights (WARM); RLOO against UWO raises gold from -0.39 to 1.42 at a KL of 3.5 (seed 0).
"""

from dataclasses import dataclass

from rlhf_jax.algorithms import ensemble
from rlhf_jax.algorithms.ensemble import EnsembleConfig
from rlhf_jax.evaluation import intervals
from rlhf_jax.models import networks
from rlhf_jax.pipeline import (
    agreement,
    learners,
    on_policy,
    people,
    results,
    reward_ensemble,
    stages,
    texts,
)
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.pipeline.rl_settings import PolicyGradientRun
from rlhf_jax.pipeline.scoring import Reward


@dataclass(frozen=True)
class Config(PolicyGradientRun):
    """Settings of the ensemble experiment, whose members are trained with the settings of `reward`."""

    ensemble: EnsembleConfig = EnsembleConfig()

    def needs(self) -> texts.Needs:
        """The files that the method learns from: comparisons, and no ratings."""
        needs = super().needs()
        return needs._replace(optional=tuple(x for x in needs.optional if x != "ratings"))

    def _conditions(self, at: str):
        super()._conditions(at)
        if not self.rl.model_weight:
            raise ValueError(
                f"{at}rl.reward_model_weight = 0.0 leaves the ensemble out of the reward: set it above 0, or "
                f"start rloo with this rl.reward"
            )


config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("ensemble", cfg, learners.batch_sizes(cfg, "pg", cfg.pg))
    if run is None:
        return
    own, fn = run.cfg.ensemble, networks.reward_model(run.lm).fn
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)
    assert reward is not None and pairs is not None

    # 1. more reward models, and their accuracy on held-out pairs
    members = reward_ensemble.train(run, reference, pairs)
    scored = reward_ensemble.on_held_out_pairs(run, reward, members, pairs)
    of = [c.group for c in pairs.held_out], [c.weight for c in pairs.held_out]
    accuracy = lambda x: intervals.accuracy(x[:, 0] - x[:, 1], *of)._asdict()
    rows = [{"scores of": name, "held-out accuracy": accuracy(x)} for name, x in scored.items()]
    facts = agreement.about_scored(run, scored[own.combine], pairs, pairs.halves[0]) | facts

    # 2. RLOO against their combined score
    if own.combine == "warm":
        combined = Reward(fn, run.devices.make(ensemble.weight_average, members))
    else:
        combined = Reward(ensemble.make_score(fn, own), members)
    method = learners.with_policy_gradient(run, "rloo", reference)
    params, _ = on_policy.train(run, method, reference, combined, held_out_reward)

    # 3. the results, and the disagreement of the members
    before, said = (results.respond(run, x) for x in (run.start(reference), params))
    scores = lambda said: reward_ensemble.member_scores(run, members, said.samples)
    spread = lambda said: scores(said).std(axis=-1).mean().item()
    extra = {
        "disagreement of the reward models": {"before": spread(before), "after": spread(said)},
        "ensemble": rows,
    }
    judges = results.Judges(combined, held_out_reward)
    name = f"RLOO ({own.combine})"
    results.conclude(run, name, reference, said, judges, extra=extra, facts=facts)
