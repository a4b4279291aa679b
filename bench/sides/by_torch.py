"""transformers' generation, and training steps written out in torch on its models: a peer's side.

python -m bench.sides.by_torch '{"name": "sft", "folder": ..., "work": {...}}'
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers

from bench import works
from bench.sides import protocol


def read(folder: Path, kind=transformers.AutoModelForCausalLM):
    """A model in float32; no token of it is a pad."""
    model = kind.from_pretrained(folder, dtype=torch.float32)
    model.config.pad_token_id = model.config.vocab_size
    return model


def generating(asked, work, tokens, stops):
    """generate, sample and ragged: `generate`, a batch at a time."""
    model = read(Path(asked.folder) / "policy").eval()
    config = transformers.GenerationConfig(
        max_new_tokens=work.response,
        do_sample=asked.name != "generate",
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=stops or None,
        pad_token_id=0,
        bos_token_id=None,
    )
    model.generation_config = config
    parts = [tokens[i : i + work.rows] for i in range(0, len(tokens), work.rows)]

    def once():
        said = []
        with torch.inference_mode():
            for part in parts:
                mask = torch.ones_like(part)
                found = model.generate(part, attention_mask=mask, generation_config=config)
                found = found[:, work.prompt :]
                said.append(F.pad(found, (0, work.response - found.shape[1])))
        rows = torch.cat(said).numpy()
        return rows.tolist(), {"units": int(works.lengths(rows, stops).sum())}

    return once


def logprobs(model, tokens, response: int):
    """Sums over the last `response` tokens of each row, [rows]; logits of no other columns are made."""
    logits = model(tokens, logits_to_keep=response + 1).logits[:, :-1]
    said = tokens[:, -response:]
    return -F.cross_entropy(logits.transpose(1, 2), said, reduction="none").sum(1)


def training(model, loss):
    """A gradient step on `loss()`: clipped, and Adam, fused as torch does it best."""
    model.train()
    adam = torch.optim.AdamW(
        model.parameters(), lr=works.LR, eps=1e-5, weight_decay=0.0, fused=True
    )

    def once():
        found = loss()
        adam.zero_grad(set_to_none=True)
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), works.CLIP)
        adam.step()
        return found.item(), {}

    return once


def reward(asked, work, tokens, stops):
    """A step of the reward model, on both sides in one pass."""
    del work, stops
    kind = transformers.AutoModelForSequenceClassification
    model, both = read(Path(asked.folder) / "reward", kind), tokens.flatten(0, 1)

    def loss():
        chosen, rejected = model(both).logits[:, 0].chunk(2)
        return -F.logsigmoid(chosen - rejected).mean()

    return training(model, loss)


def supervised(asked, work, tokens, stops):
    """A step on demonstrations."""
    del work, stops
    model = read(Path(asked.folder) / "policy")

    def loss():
        logits = model(tokens).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return training(model, loss)


def dpo(asked, work, tokens, stops):
    """The reference's pass, and a step."""
    del stops
    folder, both = Path(asked.folder) / "policy", tokens.flatten(0, 1)
    model, reference = read(folder), read(folder).eval()

    def loss():
        with torch.no_grad():
            before = logprobs(reference, both, work.response)
        chosen, rejected = (logprobs(model, both, work.response) - before).chunk(2)
        return -F.logsigmoid(works.BETA * (chosen - rejected)).mean()

    return training(model, loss)


MAKE = dict(
    generate=generating,
    sample=generating,
    ragged=generating,
    reward=reward,
    sft=supervised,
    dpo=dpo,
)


def main():
    """Serves what the parent asks for."""
    asked = protocol.settings()
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    torch.manual_seed(0)
    work = works.Work(**asked.work)
    config = transformers.AutoConfig.from_pretrained(Path(asked.folder) / "policy")
    tokens = torch.from_numpy(works.tokens(asked.name, work, config.vocab_size)).long()
    stops = works.stops(asked.name, work, config.vocab_size)
    protocol.serve(MAKE[asked.name](asked, work, tokens, stops))


if __name__ == "__main__":
    main()
