"""People's preferences to a better policy: SFT, a reward model, PPO, and proof on held-out prompts.

    python launch.py sentiment

trains on a generated world of movie reviews whose true sentiment ("gold") is known, in about three
minutes on two CPU cores: gold rises from about 0 to above 1, in reference standard deviations.

    python launch.py sentiment --data.corpus FILES --data.comparisons FILES --data.prompts FILES

does the same on your JSONL (.gz too); gold is then a second reward model, taught by other comparisons.
"""

from dataclasses import dataclass, replace

import jax

from experiments import stages, verdict, worlds
from experiments.rl import RLConfig, batch_sizes, train_ppo
from rlhf_jax import parallel, ppo, rollout, run
from rlhf_jax.data.comparisons import encode_comparisons
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.data.splits import split
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ppo import PPOConfig
from rlhf_jax.rollout import RolloutConfig
from rlhf_jax.sampling import SampleConfig, check_on_policy
from rlhf_jax.tasks.annotators import AnnotatorConfig


@dataclass(frozen=True)
class Config:
    """Settings of the sentiment experiment."""

    seed: int = 0
    """Of all that is drawn."""
    run: str = ""
    """Run directory; empty: runs/sentiment/HASH-OF-CONFIG."""
    devices: str = "auto"
    """auto, device (the first one), pmap, or mesh (a data axis over all)."""
    wandb: bool = False
    """Log to Weights & Biases too."""
    tokenizer: str = ""
    """Folder or hub name of a transformers tokenizer; empty: trained on the corpus."""
    data: worlds.DataConfig = worlds.DataConfig()
    annotators: AnnotatorConfig = AnnotatorConfig()
    model: ModelConfig = ModelConfig(d_model=64, context=64, positions="rotary")
    sft: stages.SFTConfig = stages.SFTConfig()
    reward: stages.RewardConfig = stages.RewardConfig()
    sample: SampleConfig = SampleConfig()
    rollout: RolloutConfig = RolloutConfig()
    ppo: PPOConfig = PPOConfig()
    rl: RLConfig = RLConfig()
    eval_draws: int = 4
    """Responses to each held-out prompt, before and after."""


config = Config()
AGAIN = "python launch.py sentiment --seed 1 (or any other setting, or --run NEW_FOLDER)"


def main(cfg: Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    check_on_policy(cfg.sample)
    for part in ("rollout", "ppo"):
        if getattr(cfg, part).temperature not in (1.0, cfg.sample.temperature):
            raise ValueError(
                f"{part}.temperature = {getattr(cfg, part).temperature} is not what samples are drawn "
                "at: set sample.temperature, and the others follow"
            )
    devices = parallel.choose(
        cfg.devices,
        {
            "sft.batch_size": cfg.sft.batch_size,
            "reward.batch_size": cfg.reward.batch_size,
            **batch_sizes(cfg),
        },
    )
    world = worlds.read(cfg.data, cfg.annotators, cfg.seed)
    folder = run.open_run("sentiment", cfg, cfg.run)
    if verdict.stands(folder):
        print("this run is finished")
        return verdict.show(folder, again=AGAIN)
    words = stages.read_tokenizer(folder, cfg.tokenizer, world.corpus, cfg.data.vocab_size)
    cfg = replace(
        cfg,
        model=replace(cfg.model, vocab_size=len(words)),
        sample=replace(cfg.sample, stop=(words.eos_token_id,), pad=words.pad_token_id),
        rollout=replace(
            cfg.rollout, stop=(words.eos_token_id,), temperature=cfg.sample.temperature
        ),
        ppo=replace(cfg.ppo, temperature=cfg.sample.temperature),
    )
    lm = networks.language_model(cfg.model)
    reward_fn = networks.reward_model(lm).fn
    lengths = cfg.data.prompt_length, cfg.sample.length
    answers = stages.responder(cfg.sample, devices, lm, words, lengths[0], cfg.rl.batch_size)
    key = jax.random.key(cfg.seed)

    # 1. a language model, from texts
    demos, demos_held_out = (
        stages.demonstrations(words, texts, lengths)
        for texts in (world.corpus, world.corpus_held_out)
    )
    reference, sft_loss = stages.train_sft(
        folder, cfg.sft, devices, lm, demos, demos_held_out, cfg.seed, wandb=cfg.wandb
    )

    # 2. two reward models, from what people preferred: one to train against, one to judge by
    ask = lambda prompts: answers.respond(reference, prompts, jax.random.fold_in(key, 1)).texts
    compared = world.comparisons(folder, ask)
    train, held_out = split(compared, lambda c: c.group, cfg.data.held_out, cfg.seed)
    halves = split(train, lambda c: c.group, 0.5, cfg.seed + 1)
    mine, judge = (
        stages.train_reward(
            folder, stage, cfg.reward, devices, lm, reference,
            encode_comparisons(words, half, *lengths), demos_held_out, cfg.seed, wandb=cfg.wandb,
        )
        for stage, half in zip(("reward", "judge"), halves, strict=True)
    )  # fmt: skip

    # 3. PPO against the first
    def watch(rows, samples, judged):
        prompts = [world.prompts[row] for row in rows]
        gold = world.gold(prompts, answers.texts(samples)) if world.gold else judged
        return {"objective/gold": gold.mean()}

    actor_critic_fn, params, kl_coef = train_ppo(
        folder, cfg, devices, lm, answers.sample, reference, mine, judge,
        encode_prompts(words, world.prompts, lengths[0]), watch, seed=cfg.seed, wandb=cfg.wandb,
    )  # fmt: skip

    # 4. the verdict, on held-out prompts
    prompts = [prompt for prompt in world.prompts_held_out for _ in range(cfg.eval_draws)]
    sides = [
        answers.respond(policy, prompts, jax.random.fold_in(key, 2))
        for policy in (reference, params["policy"])
    ]
    scores = [stages.score(reward_fn, mine, side.samples) for side in sides]
    judged = [stages.score(reward_fn, judge, side.samples) for side in sides]
    golds = [world.gold(prompts, side.texts) for side in sides] if world.gold else judged
    annotate = jax.jit(rollout.make_annotate(lm.policy_fn, actor_critic_fn, cfg.rollout))
    annotated = annotate(params, jax.device_get(reference), sides[1].samples, scores[1])
    pairs = encode_comparisons(words, held_out, *lengths)
    results = (
        verdict.before_and_after(prompts, golds=golds, scores=scores, judged=judged)
        | verdict.of_rewards(stages.margins(reward_fn, mine, pairs), train, held_out)
        | {
            "kl": verdict.kl(prompts, annotated),
            "SFT held-out loss, nats a response": sft_loss * demos_held_out.mask.sum(1).mean(),
        }
        | world.known(held_out)
    )
    batch, _ = ppo.prepare(annotated, kl_coef, cfg.ppo)
    verdict.write(
        folder,
        results,
        samples=verdict.sample_rows(prompts, sides, golds, scores),
        tokens=verdict.token_rows(words, prompts, annotated, batch, kl_coef),
    )
    verdict.show(folder, again=AGAIN)
