"""The whole loop in rounds: people judge, a reward model learns, then PPO.

    python launch.py circle                                     # simulated people: an hour on two cores
    python launch.py circle --people human --strategies bald    # you judge, in a browser

Each round samples responses, chooses pairs to ask about, has them judged on the labelling page over HTTP,
makes one label of each pair's votes, trains a reward model on all labels so far, trains a policy against it
with PPO, and has people compare that policy with the reference, blind. The results show gold against labels
for each strategy of `rlhf_jax/people/choosing.py`, beside two controls: one asks about pairs again, one is
told gold's answers. Agreement and calibration are those of the uniform stream alone. Gold is the mean
strength of the adjectives, less 4 for each fault (`warmth` of `rlhf_jax/tasks/reviews.py`), which few
comparisons teach.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from rlhf_jax.bounds import Bound, Count, Unit
from rlhf_jax.people import choosing
from rlhf_jax.people.choosing import choose
from rlhf_jax.pipeline import labelling
from rlhf_jax.pipeline.page import collect, served
from rlhf_jax.runs import disk
from rlhf_jax.studies import context as contexts
from rlhf_jax.studies import label_efficiency, rounds
from rlhf_jax.studies.context import Seed, SharedConfig, Size, StudyContext
from rlhf_jax.studies.learners import ON_POLICY, Method
from rlhf_jax.studies.population import Job, nested_seeds
from rlhf_jax.studies.proxies import accuracy
from rlhf_jax.studies.rounds import GOLD
from rlhf_jax.studies.study import StudyConfig, begin

HOW = ("majority", "dawid_skene")
TABLE = "strategies"
COLUMNS = {
    TABLE: ("strategy", "gold after the first round", "gold after the last", "gold beyond random",
            "reward accuracy", "labels for random's gold", "labels for random's accuracy")
}  # fmt: skip


@dataclass(frozen=True)
class Config(StudyConfig):
    """Settings of the study."""

    _main = ("strategies", "people", "rounds", "pairs", "aggregate", "port")
    _incidental = (*StudyConfig._incidental, "port")

    seeds: Annotated[int, Bound(ge=2)] = 10
    """Seeds, each with prompts, people and reward models of its own, and the same ones for all strategies."""
    strategies: tuple[choosing.Name, ...] = choosing.NAMES
    """Strategies that choose the pairs to ask about."""
    people: Literal["simulated", "human"] = "simulated"
    """People who judge: simulated ones, or whoever opens the links that are printed."""
    rounds: Count = 4
    """Rounds of the circle."""
    pairs: Annotated[int, Bound(ge=5)] = 60
    """Pairs to ask about in each round, of which one in five is drawn uniformly."""
    prompts: Count = 64
    """Prompts in each round, whose responses make the pairs to choose from."""
    draws: Annotated[int, Bound(ge=2)] = 4
    """Responses to each prompt."""
    noise: tuple[Unit, ...] = (0.1, 0.3, 0.9)
    """Simulated people, each by the probability of an answer by a coin flip; every pair is judged by all."""
    annotators: Count = 1
    """Human annotators; every pair is judged by all."""
    port: Annotated[int, Bound(ge=0, le=65535)] = 8000
    """Port of the page for human annotators; 0 takes any free one."""
    aggregate: Literal["majority", "dawid_skene"] = "dawid_skene"
    """Label of a pair: the share of its votes, or the posterior of Dawid and Skene's model of accuracies."""
    members: Annotated[int, Bound(ge=2)] = 8
    """Linear rewards on the reward model's trunk, each of a bootstrap of the labels, to choose pairs by."""
    size: Size = "100k"
    """Size of the reward models."""
    duels: Count = 16
    """Held-out prompts on which each round's policy is compared with the reference."""
    method: Method = Method("ppo", iterations=14, batch_size=64)
    shared: SharedConfig = SharedConfig(reward_steps=120, pool_draws=16)

    def _conditions(self, at: str):
        super()._conditions(at)
        if self.method.name not in ON_POLICY:
            raise ValueError(
                f'{at}method.name = "{self.method.name}" has no reward to follow: use '
                f"{' or '.join(ON_POLICY)}"
            )
        most = self.prompts * self.draws * (self.draws - 1) // 2
        if self.pairs > most:
            raise ValueError(
                f"{at}pairs = {self.pairs}, and {at}prompts = {self.prompts} with {at}draws = {self.draws} "
                f"make {most} pairs at most: ask about fewer, or raise one of them"
            )
        if self.people == "human" and len(self.strategies) != 1:
            raise ValueError(
                f'{at}people = "human" asks people about the pairs of one strategy, and {at}strategies names '
                f"{len(self.strategies)}: name one"
            )

    def _unread(self) -> dict[str, str]:
        unread = {"method.epochs": f"{self.method.name} draws its own responses"}
        unread |= dict.fromkeys(
            ("shared.teacher", "shared.teacher_pairs"), "people judge by the grammar"
        )
        if self.people == "human":
            own = ("noise", "seeds", "population", "shared.people.scale", "shared.people.noise")
            return unread | dict.fromkeys((*own, "shared.people.length_bias"), "people are human")
        unread["shared.people.noise"] = "noise has it, for each person"
        return unread | dict.fromkeys(("annotators", "port"), "people are simulated")

    @property
    def wanted(self) -> int:
        """People who judge each pair."""
        return len(self.noise) if self.people == "simulated" else self.annotators


config = Config()


def circles(
    context: StudyContext, cfg: Config, strategy: str, seeds: Sequence[Seed]
) -> list[dict[str, Any]]:
    """The circle of each seed under a strategy."""
    return [circle(context, cfg, strategy, seed) for seed in seeds]


def circle(context: StudyContext, cfg: Config, strategy: str, seed: Seed) -> dict[str, Any]:
    """The rounds of one seed: gold, accuracy, win rate and KL after each, and the uniform stream's votes.

    Reward models and policies that an earlier start has finished are loaded, and the page knows what was
    judged, so that a circle that was killed goes on and ends with the same numbers.
    """
    folder = context.folder / "circles" / f"{strategy}-{seed.data}"
    people = [] if cfg.people == "human" else rounds.people(cfg.shared.people, cfg.noise, seed)
    size, wanted, golds = cfg.size, cfg.wanted, contexts.pool_gold(context, GOLD)
    start = learned = rounds.initial(context, size, cfg.members, seed)
    policy, said, asked, found, uniform = context.reference, None, rounds.NOTHING, [], []
    with served(folder, len(people), cfg.annotators, cfg.port) as page:
        for r in range(cfg.rounds):
            # 1. responses of the policy to prompts of this round
            drawn = rounds.respond(context, policy, cfg.prompts, cfg.draws, seed, r)
            said = said + drawn if said else drawn

            # 2. the pairs to ask about
            pool = rounds.pool_of(context, size, learned, said, cfg.draws, asked)
            chosen = choose(strategy, pool, cfg.pairs, np.random.default_rng([seed.data, r]))
            new, items = rounds.questions(said, pool, chosen, strategy, r, wanted)

            # 3. people judge them on the page
            rows = collect(page, items, people, f"round {r + 1} of {cfg.rounds}, pairs")

            # 4. one label for each pair asked so far, from all votes
            asked = asked + new
            votes = rounds.votes_on(rows, asked.ids)
            labels = {how: rounds.labels_of(votes, how, len(asked.ids)) for how in HOW}
            if strategy == "gold":  # a control, which is told the truth
                labels = dict.fromkeys(HOW, rounds.truth(said, asked))

            # 5. a reward model of all labels
            learn = partial(
                rounds.learn, context, size, said, asked, members=cfg.members, seed=seed
            )
            make = partial(learn, labels[cfg.aggregate])
            learned = contexts.load_or_make(folder / f"reward-{r}", start, make)

            # 6. a policy that maximises it
            own = seed._replace(policy=100 * seed.policy + r)
            make = partial(rounds.improve, context, cfg.method, size, learned, own)
            policy = contexts.load_or_make(folder / f"policy-{r}", context.reference, make)

            # 7. people compare the policy with the reference
            samples, gold, log_ratio = rounds.held_out(context, policy, own)
            duels = rounds.duels(context, samples, cfg.duels, r, wanted)
            rows = collect(page, duels, people, f"round {r + 1} of {cfg.rounds}, policies")
            won = rounds.votes_on(rows, [item["id"] for item in duels]).first

            uniform += rounds.uniform_stream(pool, chosen, votes, r * cfg.pairs)
            found.append({
                "labels": len(asked.ids), "gold": gold.mean(), "kl": log_ratio.mean(),
                "accuracy": accuracy(learned.scores, golds),
                "win rate": won.mean() if len(won) else 0.5,
                **{f"right by {how}": rounds.right(said, asked, labels[how]) for how in HOW},
            })  # fmt: skip
            if strategy == "random" and r == cfg.rounds - 1:
                # what the two ways of aggregation are worth
                by = {how: learned if how == cfg.aggregate else learn(labels[how]) for how in HOW}
                found[-1] |= {f"accuracy by {x}": accuracy(by[x].scores, golds) for x in HOW}
    for stage in (*folder.glob("reward-*"), *folder.glob("policy-*")):
        shutil.rmtree(stage)  # the database stays
    return {"rounds": found, "uniform": uniform}


def main(cfg: Config):
    """Computes the missing circles, and writes the table and the picture of all."""
    labelling.check()
    human = cfg.people == "human"
    study = begin("circle", cfg, COLUMNS, (cfg.size,))
    if study is None:
        return
    if human:  # in this process, which has the terminal
        study = study._replace(population="vmap")
    seeds = nested_seeds(cfg.seeds)[: 1 if human else None]
    jobs = [Job(strategy, circles, (cfg, strategy)) for strategy in cfg.strategies]
    runs = study.run(jobs, seeds)
    start = float(contexts.pool_gold(study.context, GOLD).mean())
    disk.write_json(study.folder / "circles.json", runs)
    label_efficiency.picture(study.folder / "circle.png", runs, start)
    study.conclude(label_efficiency.results(TABLE, runs, start), "circle.png")
