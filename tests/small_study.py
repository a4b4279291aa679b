"""Shared settings of a study that takes seconds."""

from rlhf_jax.pipeline import stages
from rlhf_jax.studies.context import SharedConfig

SHARED = SharedConfig(
    policy="10k",
    reviews=80,
    sft=stages.SFTConfig(steps=12, batch_size=8, eval_every=6),
    reward_steps=3,
    reward_batch=4,
    pool_prompts=8,
    pool_draws=8,
)
