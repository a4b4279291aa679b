"""The verdict that every method ends with: on prompts that no stage has seen, beside where it started."""

import jax
import numpy as np

from rlhf_jax.batches import Samples
from rlhf_jax.models import networks
from rlhf_jax.pipeline import ground as grounds
from rlhf_jax.pipeline import inference, judge, verdict
from rlhf_jax.pipeline.ground import Ground
from rlhf_jax.rewards import scorer as rewards
from rlhf_jax.runs import run


def held_out_prompts(ground: Ground) -> list[str]:
    """The prompts of the verdict, each as often as it is answered."""
    return [
        prompt for prompt in ground.world.prompts_held_out for _ in range(ground.cfg.eval_draws)
    ]


def before(ground: Ground) -> inference.Answers:
    """What the SFT policy says to the held-out prompts."""
    key = jax.random.fold_in(ground.key, 2)
    return ground.answers.respond(ground.reference, held_out_prompts(ground), key)


def after(ground: Ground, params, answers: inference.Responder | None = None) -> inference.Answers:
    """What a trained policy says to them, with the same noise; `answers` where it is another network."""
    key = jax.random.fold_in(ground.key, 2)
    return (answers or ground.answers).respond(params, held_out_prompts(ground), key)


def scores(ground: Ground, answers: inference.Answers, params=None) -> np.ndarray:
    """What the reward gives to the responses, or a reward model of parameters `params`."""
    if params is None:
        return inference.score(ground.devices, ground.reward_fn, ground.reward, answers.samples)
    fn = networks.reward_model(ground.lm).fn
    return inference.score(ground.devices, fn, params, answers.samples)


def has_gold(ground: Ground) -> bool:
    """Whether `golds` can say what responses are worth."""
    return ground.world.gold is not None or ground.judge is not None


def golds(ground: Ground, prompts, answers: inference.Answers) -> np.ndarray:
    """What the responses are worth: the true score where it is known, else the judge's."""
    if ground.world.gold:
        return ground.world.gold(prompts, answers.texts)
    return scores(ground, answers, ground.judge)


def python_scores(ground: Ground, answers: inference.Answers) -> np.ndarray:
    """What the Python reward gives to responses to the held-out prompts, each answered equally often."""
    world, scorer = ground.world, ground.scorer
    assert scorer is not None
    draws = range(len(answers.texts) // len(world.prompts_held_out))
    prompts = [prompt for prompt in world.prompts_held_out for _ in draws]
    columns = rewards.columns_of([row for row in world.columns_held_out for _ in draws])
    return scorer.submit(prompts, answers.texts, **columns).result()


def rewarded(ground: Ground, answers: inference.Answers) -> np.ndarray:
    """What training rewards such responses with: the reward model, the Python reward, or their sum."""
    total, weight = np.zeros(len(answers.texts), np.float32), judge.model_weight(ground.cfg)
    if weight:
        total += np.float32(weight) * scores(ground, answers)
    return total if ground.scorer is None else total + python_scores(ground, answers)


def reference_logprobs(ground: Ground, samples: Samples) -> np.ndarray:
    """Log-probability of each token under the SFT policy [N, T], zero where nothing was said."""
    T, lm = samples.mask.shape[1], ground.lm.at(ground.cfg.sample.temperature)
    fn = lambda params, tokens, mask: lm.policy_fn(params, tokens, mask, last=T)[0]
    return np.where(
        samples.mask, inference.score(ground.devices, fn, ground.reference, samples), 0.0
    )


def conclude(
    ground: Ground, method: str, said: inference.Answers, *, kl=None, extra=None, tokens=None
):
    """Writes and shows what came of `method`, whose policy said `said` to the held-out prompts.

    `kl` is given where the sampler's own log-probabilities do not tell it (nats a response, an
    interval); `extra` are further results; `tokens` are quantities [N, T] by name, beside the KL, for
    the report's rows token by token.
    """
    prompts, sides = held_out_prompts(ground), (before(ground), said)
    measures = {
        "gold": has_gold(ground) and (lambda side: golds(ground, prompts, side)),
        "Python reward": ground.scorer and (lambda side: python_scores(ground, side)),
        "score of the reward model": ground.reward_fn and (lambda side: scores(ground, side)),
        "score of the held-out judge": ground.judge is not None
        and (lambda side: scores(ground, side, ground.judge)),
    }
    measured = {name: [fn(side) for side in sides] for name, fn in measures.items() if fn}
    log_ratio = np.asarray(said.samples.logprobs) - reference_logprobs(ground, said.samples)
    results = verdict.before_and_after(method, prompts, measured)
    results |= {"kl": kl or verdict.kl(prompts, log_ratio)} | (extra or {}) | ground.facts
    quantities = {"kl": log_ratio} | (tokens or {})
    verdict.write(
        ground.folder,
        results,
        samples=verdict.sample_rows(method, prompts, sides, measured),
        tokens=verdict.token_rows(ground.words, prompts, said.samples, quantities),
    )
    verdict.show(ground.folder, grounds.again(run.read_config(ground.folder)["experiment"]))
