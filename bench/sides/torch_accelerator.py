"""What `bench.accelerator` measures, in torch on transformers' Qwen 2: its peer.

PEER/bin/python -m bench.sides.torch_accelerator '{"shape": {...}, "rows": 8, ...}'    prints {work: seconds}

Training keeps float32 parameters and multiplies in bfloat16 (autocast), as ours does, with gradients
checkpointed where ours are; decoding is bfloat16 throughout. Without a GPU it runs on the CPU, as a trial.
"""

import json
import statistics
import sys
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import transformers

from bench import works

EPOCHS, GAMMA, LAMBDA, CLIP = 4, 1.0, 0.95, 0.2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(fn, repeats):
    """Of one call, when it is warm: the median."""
    took = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        fn()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took[2:])


def built(asked, kind=transformers.AutoModelForCausalLM, dtype=torch.float32):
    """A model of the shape, with random weights."""
    config = transformers.Qwen2Config(**asked.shape, num_labels=1, pad_token_id=None)
    with torch.device(DEVICE):
        return kind.from_config(config, dtype=dtype)


def trained(asked, models):
    """(the models with gradients checkpointed where that is asked, and their optimizer)."""
    for model in models:
        model.train()
        if asked.remat:
            model.activation_checkpointing_enable({"use_reentrant": False})
    weights = [p for model in models for p in model.parameters()]
    return torch.optim.AdamW(weights, lr=works.LR, eps=1e-5, weight_decay=0.0, fused=True), weights


def stepped(adam, weights):
    """One step on the gradients that are there."""
    torch.nn.utils.clip_grad_norm_(weights, works.CLIP)
    adam.step()
    adam.zero_grad(set_to_none=True)


def logprobs(model, tokens, last):
    """Of the last tokens of each row [B, last], float32."""
    hidden = model.model(tokens, use_cache=False).last_hidden_state[:, -last - 1 : -1]
    logits = model.lm_head(hidden).float()
    return -F.cross_entropy(
        logits.flatten(0, 1), tokens[:, -last:].flatten(), reduction="none"
    ).view(-1, last)


def training(asked):
    """A step on whole rows."""
    model = built(asked)
    adam, weights = trained(asked, [model])
    shape = asked.rows, asked.length
    tokens = torch.randint(asked.shape["vocab_size"], shape, device=DEVICE)

    def step():
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = -logprobs(model, tokens, asked.length - 1).mean()
        loss.backward()
        stepped(adam, weights)

    return seconds(step, asked.repeats)


def said(model, prompts, count):
    """`count` more tokens of every row, drawn at temperature 1."""
    return model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=count,
        min_new_tokens=count, do_sample=True, top_k=0, top_p=1.0, pad_token_id=0,
    )  # fmt: skip


def prompts_of(asked):
    """Random ones, without padding."""
    return torch.randint(asked.shape["vocab_size"], (asked.batch, asked.prompt), device=DEVICE)


def decoding(asked):
    """A token of all rows: generation less what its first token takes."""
    model, prompts = built(asked, dtype=torch.bfloat16).eval(), prompts_of(asked)
    whole, first = (
        seconds(lambda n=n: said(model, prompts, n), asked.repeats) for n in (asked.response, 1)
    )
    return (whole - first) / (asked.response - 1)


def advantages(rewards, values):
    """GAE over [B, T]; nothing follows the last token."""
    after, found = torch.zeros_like(values[:, 0]), []
    following = F.pad(values[:, 1:], (0, 1))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + GAMMA * following[:, t] - values[:, t]
        after = delta + GAMMA * LAMBDA * after
        found.append(after)
    return torch.stack(found[::-1], 1)


def ppo(asked):
    """An iteration: sampling, a pass of policy, reference, reward model and critic, and the epochs."""
    token_kind = transformers.AutoModelForTokenClassification
    policy, reference = built(asked), built(asked).eval()
    critic, judge = built(asked, token_kind), built(asked, token_kind).eval()
    adam, weights = trained(asked, [policy, critic])
    prompts, T = prompts_of(asked), asked.response
    values_of = lambda x: critic(x, use_cache=False).logits[:, -T - 1 : -1, 0].float()

    def iteration():
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
            policy.eval()
            rows = said(policy, prompts, T).split(asked.rows)
            policy.train()
            rollouts = []
            for x in rows:
                old, ref = logprobs(policy, x, T), logprobs(reference, x, T)
                rewards = works.KL * (ref - old)
                rewards[:, -1] += judge(x, use_cache=False).logits[:, -1, 0].float()
                values = values_of(x)
                gain = advantages(rewards, values)
                rollouts.append((x, old, values, gain, gain + values))
            gains = torch.cat([r[3] for r in rollouts])
            mean, spread = gains.mean(), gains.std()
        for _ in range(EPOCHS):
            for x, old, values, gain, returns in rollouts:
                with torch.autocast(DEVICE, torch.bfloat16):
                    new, ratio = values_of(x), torch.exp(logprobs(policy, x, T) - old)
                gain = (gain - mean) / (spread + 1e-8)
                clipped = torch.clip(ratio, 1 - CLIP, 1 + CLIP)
                near = values + torch.clip(new - values, -CLIP, CLIP)
                loss = torch.maximum(-gain * ratio, -gain * clipped).mean()
                error = torch.maximum((new - returns) ** 2, (near - returns) ** 2).mean()
                ((loss + 0.05 * error) / len(rollouts)).backward()
            stepped(adam, weights)

    return seconds(iteration, asked.repeats)


WORKS = dict(training=training, decoding=decoding, ppo=ppo)


def main():
    """Prints the seconds of every work that is asked for."""
    asked = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.manual_seed(0)
    told = {}
    for name in asked.only:
        told[name] = WORKS[name](asked)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
