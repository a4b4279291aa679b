"""The keys of a run's random draws: one for each purpose, from one table, so that no two share one."""

import jax

STAGES = (  # append only: the place of a name is folded into its key
    "sft",
    "reward",
    "held_out_reward",
    "adapters",
    "comparisons",
    "policy",
    "rollout",
    "update",
    "draws",
    "results",
    "people",
    "eval",
)
"""The purposes of random draws. The first three and "policy" are models whose parameters begin at random;
"rollout" and "update" are folded with the iteration; "draws" are those of best of n; "people"
are responses of a finished run that people judge; "eval" are those to held-out prompts while a policy is
trained."""


def key_of(seed: int, stage: str) -> jax.Array:
    """The key of a stage: the seed's own, folded with the place of the stage in the table."""
    return jax.random.fold_in(jax.random.key(seed), STAGES.index(stage))


def adapters(seed: int, stage: str) -> jax.Array:
    """The key of the adapters that a stage trains."""
    return jax.random.fold_in(key_of(seed, "adapters"), STAGES.index(stage))
